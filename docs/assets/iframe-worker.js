// Browsers start no worker for a page that is read from disk. Search then runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.ready = new Promise((resolve) => {
        this.started = resolve;
      });
      this.inside.answer = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.inside.ready = () => this.started();
      const page = this.inside.document;
      page.open();
      page.write(
        "<script>const answer = window.answer, ready = window.ready; window.postMessage = answer;</script>" +
          `<script src="${url}" onload="ready()"></script>`,
      );
      page.close();
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.inside.frameElement?.remove();
    }
  };
}
