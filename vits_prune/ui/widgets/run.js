// The run that makes what the stage plays, one at a time on a page. A press during a run ends that run, and the next one
// begins where it ends. Nothing is cancelled: in Gradio 6.31 what begins while something is being cancelled may get lost.
// Functions that return a ticket end the run that has it. A ticket that begins with "p" wants to be heard at once,
// with "h" too, from the voice that was healed.
window.stageRun = {
  now: null,
  play: false,
  heals: false,
  start() {
    const ticket = (this.heals ? 'h' : this.play ? 'p' : 'q') + Date.now().toString(36) + Math.random().toString(36).slice(2);
    const slider = document.querySelector('#amount input[type=range]');
    this.now = { ticket, again: false, heals: this.heals, play: this.play, heard: false, amount: Number(slider.value) };
    this.play = this.heals = false;
    return ticket;
  },
  speak(play, heals = false) {
    const unheard = this.now && this.now.play && !this.now.heard;  // what was asked for before is still wanted
    this.play = this.play || play || unheard;
    this.heals = heals;
    if (!this.now) {
      document.querySelector('#go').click();
      return '';
    }
    this.now.again = true;
    document.querySelector('#end').click();
    return this.now.ticket;
  },
  open(since = Date.now()) {  // the sound that is there already comes first, then its figures
    const stage = document.querySelector('#stage .stage'), made = Number(stage.dataset.made || 0);
    if (made && stage.querySelector('.play:disabled') && Date.now() - since < 5000) setTimeout(() => this.open(since), 100);
    else setTimeout(() => this.speak(false), made ? 400 : 0);
  },
  stop() {
    if (!this.now) return '';
    this.now.again = false;
    return this.now.ticket;
  },
  ended() {
    const again = this.now && this.now.again;
    this.now = null;
    if (again) document.querySelector('#go').click();
  },
};
// What the stage shows is in the address, so that a link to it opens the same.
const address = { values: {}, timer: 0 };
window.stageAddress = (values) => {  // some browsers allow few changes a second
  Object.assign(address.values, values);
  clearTimeout(address.timer);
  address.timer = setTimeout(stageAddressNow, 250);
};
window.stageAddressNow = () => {
  const values = address.values;
  address.values = {};
  clearTimeout(address.timer);
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === '') query.delete(name);
    else query.set(name, Array.isArray(value) ? value.join(',') : String(value));
  }
  history.replaceState(null, '', `${location.pathname}?${query}`);
};
// What the controls hold, where it is no longer what they held at first: the others leave the address.
window.stageChanges = (values, names, first, always) => Object.fromEntries(names.map((name, i) =>
  [name, always.includes(name) || String(first[name]) !== String(values[i]) ? values[i] : null]));
window.stageTab = () => {
  const tab = document.querySelector('#tabs [role=tab][aria-selected=true]');
  if (!tab) return;
  const name = tab.textContent.trim().toLowerCase().replace(/ .*/, '');
  stageAddress({ tab: name, ...(name === 'learn' ? {} : { lesson: null }) });
};
