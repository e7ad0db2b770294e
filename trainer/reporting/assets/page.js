// The page around the charts: light and dark, where one is, a filter of the config.
"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  function theme(name) {
    root.dataset.theme = name;
    button.setAttribute("aria-label", name === "dark" ? "Use light colours" : "Use dark colours");
    button.setAttribute("aria-pressed", String(name === "dark"));
  }
  let kept = null;
  try { kept = localStorage.getItem("trident-report-theme"); } catch { /* a browser that keeps nothing for files */ }
  const wanted = window.matchMedia("(prefers-color-scheme: dark)");
  theme(kept ?? (wanted.matches ? "dark" : "light"));
  wanted.addEventListener("change", () => { if (kept === null) { theme(wanted.matches ? "dark" : "light"); Trident.drawAll(); } });
  button.addEventListener("click", () => {
    kept = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("trident-report-theme", kept); } catch { /* the choice lasts as long as the page */ }
    theme(kept);
    Trident.drawAll();
  });

  Trident.curves.start();
  Trident.boards.start();

  const links = [...document.querySelectorAll(".top nav a")], sections = links.map((link) => document.querySelector(link.hash)).filter(Boolean);
  function mark() {
    let here = sections[0];
    for (const section of sections) if (section.getBoundingClientRect().top < 160) here = section;
    if (window.innerHeight + window.scrollY >= document.body.scrollHeight - 4) here = sections.at(-1);
    for (const link of links) if (here && link.hash === `#${here.id}`) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }
  let isWaiting = false;
  window.addEventListener("scroll", () => { if (!isWaiting) { isWaiting = true; requestAnimationFrame(() => { isWaiting = false; mark(); }); } }, { passive: true });
  mark();

  for (const field of document.querySelectorAll("[data-filter]")) {
    const rows = [...document.getElementById(field.dataset.filter).querySelectorAll("tbody tr")], told = document.getElementById(`${field.dataset.filter}-count`);
    field.addEventListener("input", () => {
      const word = field.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) { row.hidden = !row.textContent.toLowerCase().includes(word); shown += row.hidden ? 0 : 1; }
      told.textContent = `${shown} of ${rows.length} keys`;
    });
  }

  for (const details of document.querySelectorAll("details[data-charts]")) details.addEventListener("toggle", () => { if (details.open) Trident.drawAll(); });
  for (const link of links) link.addEventListener("click", () => setTimeout(mark, 400));
  // Charts of a page that is printed or pictured as a whole are drawn without scrolling.
  if (location.hash === "#all") window.dispatchEvent(new Event("beforeprint"));
})();
