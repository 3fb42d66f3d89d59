// The site's search is a Worker, which browsers refuse on file:// pages. There its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.receive = data => this.dispatchEvent(new MessageEvent("message", { data }));
      this.frame.srcdoc = `<script>postMessage = data => frameElement.receive(data)</script><script src="${url}"></script>`;
      this.ready = new Promise(resolve => { this.frame.onload = resolve; });
      document.body.appendChild(this.frame);
    }
    async postMessage(data) {
      await this.ready;
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
