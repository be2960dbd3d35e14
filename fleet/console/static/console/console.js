// The console's few lines of script: theme, confirmations, upload progress, copying, plots.
(() => {
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-theme-toggle]")) {
      const dark = document.documentElement.getAttribute("data-bs-theme") === "dark";
      localStorage.setItem("theme", dark ? "light" : "dark");
      document.documentElement.setAttribute("data-bs-theme", dark ? "light" : "dark");
      $$("[data-plot]").forEach(draw);
    }
    const copy = event.target.closest("[data-copy]");
    if (copy) navigator.clipboard?.writeText(document.querySelector(copy.dataset.copy).textContent.trim());
  });

  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.confirm || event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });

  // Uploads: the same form, sent with progress.
  function upload(form) {
    form.addEventListener("submit", (event) => {
      if (event.defaultPrevented) return;
      event.preventDefault();
      const bar = form.querySelector("progress"), text = form.querySelector("[data-upload-text]");
      const request = new XMLHttpRequest();
      request.open("POST", form.action || location.href);
      request.setRequestHeader("X-Requested-With", "XMLHttpRequest");
      request.upload.onprogress = (e) => {
        const share = e.total ? e.loaded / e.total : 0;
        bar.value = share;
        text.textContent = share < 1 ? `${Math.round(share * 100)} % sent` : "Received; checking the digest…";
      };
      request.onload = () => { if (request.responseURL !== form.action && request.status < 400) location = request.responseURL; else { document.open(); document.write(request.responseText); document.close(); } };
      request.onerror = () => { form.classList.remove("uploading"); text.textContent = "The connection broke; try again."; };
      form.classList.add("uploading");
      request.send(new FormData(form));
    });
  }

  // Plots: data comes from a JSON address, drawn by uPlot in the theme's colours.
  async function draw(element) {
    const answer = await fetch(element.dataset.plot);
    if (!answer.ok) return;
    const { at, window: shown, series } = await answer.json();
    const whole = (low, high) => at.length < 2 || (low <= at[0] && high >= at[at.length - 1]);
    const style = getComputedStyle(document.documentElement);
    const ink = getComputedStyle(element).color;
    const line = style.getPropertyValue("--pf-track").trim();
    const colours = ["#0d9488", "#f59f00", "#d63939"];
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px Inter, sans-serif" };
    const options = {
      width: element.clientWidth, height: element.clientHeight - 30, cursor: { points: { size: 6 } },
      scales: { x: { range: (u, low, high) => (whole(low, high) ? shown : [low, high]) }, y: { range: (u, low, high) => [0, (high || 1) * 1.15] } },
      axes: [axis, { ...axis, values: (u, ticks) => ticks.map((tick) => `${tick} ms`), size: 64 }],
      series: [{}, ...series.map((one, i) => ({
        label: one.label, stroke: colours[i], width: 2, points: { show: at.length < 60, size: at.length === 1 ? 9 : 5, fill: at.length === 1 ? colours[i] : undefined },
        value: (u, value) => (value == null ? "–" : value > 0 && value < 0.01 ? "<0.01 ms" : `${value.toFixed(2)} ms`), spanGaps: true,
      }))],
    };
    element.replaceChildren();
    const plot = new uPlot(options, [at, ...series.map((one) => one.values)], element);
    if (!element.dataset.watched) {
      element.dataset.watched = "1";
      new ResizeObserver(() => element.plot.setSize({ width: element.clientWidth, height: element.clientHeight - 30 })).observe(element);
    }
    element.plot = plot;
  }

  document.addEventListener("DOMContentLoaded", () => {
    $$("form[data-upload]").forEach(upload);
    $$("[data-plot]").forEach(draw);
  });
})();
