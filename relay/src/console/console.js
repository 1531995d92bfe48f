// Live updates: the page is asked for again and what is marked is put in place. Without this script pages are whole.
(() => {
  "use strict";
  const every = 3000;
  const late = 10000;
  const heard = document.getElementById("heard");
  const pause = document.getElementById("pause");
  if (!document.querySelector("[data-live]") || !heard || !pause) return;
  let last = Date.now();
  let paused = false;
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume updates" : "Pause updates";
    pause.setAttribute("aria-pressed", String(paused));
  });
  // Nothing moves under a pointer or what has the focus, or while somebody has opened or selected something there.
  const busy = (part) =>
    part.contains(document.activeElement) || part.matches(":hover") || part.querySelector("details[open]") ||
    (window.getSelection() && !window.getSelection().isCollapsed && part.contains(window.getSelection().anchorNode));
  const place = (fresh) => {
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
      if (!next || busy(part) || next.innerHTML === part.innerHTML) continue;
      part.replaceChildren(...Array.from(next.childNodes, (node) => document.importNode(node, true)));
      for (const name of ["data-total"]) {
        if (next.hasAttribute(name)) part.setAttribute(name, next.getAttribute(name));
      }
    }
    document.title = fresh.title;
    heard.textContent = fresh.getElementById("heard")?.textContent ?? heard.textContent;
    document.body.classList.remove("stale");
  };
  const look = async () => {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetch(location.href, { signal: AbortSignal.timeout(late), redirect: "error" });
        if (!answer.ok) throw new Error(String(answer.status));
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        place(fresh);
        last = Date.now();
      } catch {
        const since = Math.round((Date.now() - last) / 1000);
        if (Date.now() - last > late) {
          heard.textContent = `last heard ${since} s ago, trying again`;
          document.body.classList.add("stale");
        }
      }
    }
    setTimeout(look, every);
  };
  setTimeout(look, every);
})();
