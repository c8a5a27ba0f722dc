// Follows the event stream of a page and asks htmx to look again: at most once per data-every seconds.
// A stream that ends comes back by itself, with Last-Event-ID; one that the server refused is opened anew.
(function () {
  "use strict";
  const RETRY_MS = 2000;
  let stream = null, after = null, timer = null, due = 0, retry = null;

  function place() { return document.getElementById("live"); }

  function say(text) {
    const said = document.getElementById("live-state");
    if (said && said.textContent !== text) said.textContent = text;
    const element = place();
    if (element) element.dataset.state = text;
  }

  function look() {
    const element = place();
    if (!element || timer !== null) return;
    const wait = Math.max(0, due - Date.now());
    timer = setTimeout(function () {
      timer = null;
      due = Date.now() + 1000 * Number(element.dataset.every);
      htmx.trigger(element, "look");
      document.dispatchEvent(new Event("effillm:look"));
    }, wait);
  }

  function open() {
    const element = place();
    if (!element) return;
    close();
    if (after === null) after = element.dataset.after;
    const address = element.dataset.stream;
    stream = new EventSource(address + (address.includes("?") ? "&" : "?") + "after=" + encodeURIComponent(after));
    stream.onopen = function () {
      if (place().dataset.state === "reconnecting") look();
      say("live");
    };
    stream.onerror = function () {
      say("reconnecting");
      if (stream.readyState !== EventSource.CLOSED) return;
      retry = setTimeout(open, RETRY_MS);
      look();
    };
    element.dataset.kinds.split(" ").forEach(function (kind) {
      stream.addEventListener(kind, function (event) { after = event.lastEventId; look(); });
    });
  }

  function close() {
    if (stream) stream.close();
    stream = null;
    clearTimeout(retry);
  }

  // What is shown may have been changed without another page: the address knows.
  document.addEventListener("htmx:configRequest", function (event) {
    if (event.target.id === "live") event.detail.path = location.pathname + location.search;
  });

  // Progress is said aloud by tenths, not by jobs.
  document.addEventListener("htmx:afterRequest", function (event) {
    const far = document.querySelector("[data-said]"), said = document.getElementById("said");
    if (event.target.id === "live" && far && said && said.textContent !== far.dataset.said) said.textContent = far.dataset.said;
  });

  // What is shared by many may be a second old: then there is more to see.
  document.addEventListener("htmx:afterRequest", function (event) {
    if (event.target.id === "live" && document.querySelector("[data-behind]")) look();
  });

  // A key that was revoked, a session that ended: the server shows the door.
  document.addEventListener("htmx:responseError", function (event) {
    if (event.detail.xhr.status === 401) location.reload();
  });

  // A page that nobody sees needs no stream: browsers allow few to one server.
  document.addEventListener("visibilitychange", function () {
    if (document.hidden) { close(); return; }
    if (place()) { open(); look(); }
  });
  window.addEventListener("pagehide", close);
  document.addEventListener("DOMContentLoaded", function () {
    open();
    if (document.querySelector("[data-behind]")) look();
  });
})();
