// Keeps a page about something that still grows up to date: fetches it again and puts the new figures in place.

const EVERY_MS = 10_000;

async function follow() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of ["main", ".subtitle"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
  } catch {
    document.querySelector(".subtitle").textContent = "consilium review has ended; this is what it showed last";
  }
}

setInterval(follow, EVERY_MS);
document.addEventListener("visibilitychange", follow);
