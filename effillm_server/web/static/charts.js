// Draws the page's figures one after the other, when they come into view, in the page's own colours, without eval.
(function () {
  "use strict";
  const AGAIN_MS = 5000;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const OPTIONS = {
    ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true, theme: "custom" },
  };
  const waiting = new Set(), views = new WeakMap();
  let isDrawing = false, last = 0, timer = null;

  async function draw(figure) {
    const theme = dark.matches && !matchMedia("print").matches ? "dark" : "light";
    const answer = await fetch(figure.dataset.chart.replace("THEME", theme));
    if (!answer.ok) throw new Error((await answer.json()).detail);
    const specification = await answer.json(), lacking = specification.usermeta.not_enough;
    const needs = figure.querySelector(".needs"), place = figure.querySelector(".chart");
    needs.hidden = !lacking;
    needs.textContent = lacking ? "Not enough data yet: it " + lacking + "." : "";
    if (views.has(figure)) views.get(figure).finalize();
    views.delete(figure);
    figure.classList.toggle("lacking", Boolean(lacking));
    figure.classList.toggle("drawn", !lacking);
    figure.classList.toggle("dark", theme === "dark");
    if (lacking) { place.replaceChildren(); return; }
    views.set(figure, await vegaEmbed(place, specification, OPTIONS));
  }

  async function work() {
    if (isDrawing) return;
    isDrawing = true;
    for (const figure of waiting) {
      waiting.delete(figure);
      figure.setAttribute("aria-busy", "true");
      try { await draw(figure); }
      catch (error) {
        const needs = figure.querySelector(".needs");
        needs.hidden = false;
        needs.textContent = error.message;
      }
      figure.removeAttribute("aria-busy");
    }
    isDrawing = false;
  }

  function again() {
    if (timer !== null) return;
    timer = setTimeout(function () {
      timer = null;
      last = Date.now();
      document.querySelectorAll("figure[data-chart][data-seen]").forEach(function (figure) { waiting.add(figure); });
      work();
    }, Math.max(0, last + AGAIN_MS - Date.now()));
  }

  document.addEventListener("DOMContentLoaded", function () {
    const watcher = new IntersectionObserver(function (entries) {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        entry.target.dataset.seen = "";
        waiting.add(entry.target);
      }
      work();
    }, { rootMargin: "300px" });
    document.querySelectorAll("figure[data-chart]").forEach(function (figure) { watcher.observe(figure); });
    document.addEventListener("effillm:look", again);
    dark.addEventListener("change", again);
  });
})();
