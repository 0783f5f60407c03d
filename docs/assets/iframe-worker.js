/* A page opened from disk may not start a Web Worker, and the search is one. This runs it in a hidden frame instead. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const inside = this.frame.contentWindow
      this.answer = ({ source, data }) => {
        if (source !== inside) return
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      addEventListener("message", this.answer)
      inside.postMessage = (data) => parent.postMessage(data, "*")
      inside.importScripts = (...urls) => urls.reduce((last, src) => last.then(() => this.load(src)), Promise.resolve())
      this.ready = this.load(url)
    }

    load(src) {
      return new Promise((resolve, reject) => {
        const script = this.frame.contentDocument.createElement("script")
        script.src = src
        script.onload = () => resolve()
        script.onerror = () => reject(new Error(`cannot load ${src}`))
        this.frame.contentDocument.body.appendChild(script)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      removeEventListener("message", this.answer)
      this.frame.remove()
    }
  }
}
