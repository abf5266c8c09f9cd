// Search in a folder on disk: a browser starts no Worker from a file, so the Worker's script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: "<!doctype html>" });
      this.scope = new Promise((ready) => {
        frame.onload = () => {
          const scope = frame.contentWindow;
          const script = scope.document.createElement("script");
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          script.onload = () => ready(scope);
          script.src = url;
          scope.document.body.append(script);
        };
      });
      document.documentElement.append(frame);
    }
    postMessage(data) {
      this.scope.then((scope) => scope.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
