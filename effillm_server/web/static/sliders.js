// Says the value of a slider while it moves; a limit at its end is none and stays out of the address.
(function () {
  "use strict";
  function said(slider) {
    const value = Number(slider.value);
    if (value === Number(slider.dataset.unlimited)) return "no limit";
    return Number(value.toPrecision(6)) + " " + slider.dataset.unit;
  }
  function show(slider) {
    const text = said(slider);
    slider.setAttribute("aria-valuetext", text);
    slider.parentElement.querySelector("output").textContent = text;
  }
  document.addEventListener("input", function (event) {
    if (event.target.matches("input[type=range][data-unit]")) show(event.target);
  });
  document.addEventListener("htmx:configRequest", function (event) {
    document.querySelectorAll("input[type=range][data-unit]").forEach(function (slider) {
      if (said(slider) === "no limit") event.detail.parameters.delete(slider.name);
    });
  });
  // Another sweep has other ranges: the whole page is asked for.
  document.addEventListener("change", function (event) {
    if (event.target.matches("select[data-whole]")) { event.stopPropagation(); event.target.form.submit(); }
  }, true);
  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("input[type=range][data-unit]").forEach(show);
  });
})();
