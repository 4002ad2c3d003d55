// The run of "Speak with both", one at a time on a page. Pressed again, the button ends the run under
// way, and the next one begins where that ends. Nothing is cancelled: in Gradio 6.31 what begins while
// something is being cancelled may get lost. Functions that return a ticket end the run that has it.
window.speakRun = {
  now: null,
  start() {
    const ticket = Date.now().toString(36) + Math.random().toString(36).slice(2);
    this.now = { ticket, again: false };
    return ticket;
  },
  speak() {
    // On a phone the players lie below.
    if (innerWidth < 700) document.querySelector('#status').scrollIntoView({ behavior: 'smooth' });
    if (this.now) {
      this.now.again = true;
      return this.now.ticket;
    }
    document.querySelector('#go').click();
    return '';
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
