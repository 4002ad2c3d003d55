"""What the page does, without Gradio: caches, requests, jobs and permissions."""
