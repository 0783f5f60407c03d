/* A page opened from disk may not start a Web Worker, and the search is one. This runs it in a hidden frame instead. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.inside = this.frame.contentWindow
      this.inside.document.open()
      this.inside.document.write("<!doctype html><body></body>")
      this.inside.document.close()
      this.inside.postMessage = (data) => setTimeout(() => this.tell(this, data, this.onmessage))
      this.inside.importScripts = (...urls) =>
        urls.reduce((earlier, src) => earlier.then(() => this.load(src)), Promise.resolve())
      this.ready = this.load(url)
    }

    load(src) {
      return new Promise((resolve, reject) => {
        const script = this.inside.document.createElement("script")
        script.src = src
        script.onload = () => resolve()
        script.onerror = () => reject(new Error(`cannot load ${src}`))
        this.inside.document.body.appendChild(script)
      })
    }

    tell(target, data, listener) {
      const event = new MessageEvent("message", { data })
      target.dispatchEvent(event)
      if (listener) listener(event)
    }

    postMessage(data) {
      this.ready.then(() => this.tell(this.inside, data))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
