// Saves a page load: forms and links marked data-live fetch their own address and put its #live part in
// place. Without this file they work as plain forms and links do.
"use strict";

const WAIT = 450; // ms after the last key
const SIGN = 300; // ms until the progress sign
let last = 0; // number of the latest load; answers to earlier ones are dropped
let timer = 0;

const part = (id) => document.getElementById(id);

function addressOf(form) {
  const values = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) values.append(name, value);
  return `${form.getAttribute("action")}?${values}`;
}

// What the visitor is in the middle of must survive: focus, the text typed meanwhile, open details.
function swap(found) {
  const live = part("live");
  const active = document.activeElement;
  const typing = active && active.id === "text" ? [active.value, active.selectionStart, active.selectionEnd] : null;
  const focus = active && active.dataset ? active.dataset.focus : "";
  const open = live.querySelector(".edit")?.open;
  live.replaceChildren(...found.getElementById("live").childNodes);
  const edit = live.querySelector(".edit");
  if (edit && open) edit.open = true;
  if (typing && part("text")) {
    part("text").value = typing[0];
    part("text").focus();
    part("text").setSelectionRange(typing[1], typing[2]);
  } else if (focus) {
    const again = [...live.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focus);
    (again || live.querySelector("[data-focus]") || part("main")).focus();
  }
  part("status").textContent = found.getElementById("status").textContent;
}

// The fields that the server fills: not the one that is being typed into.
function fill(found) {
  for (const id of ["q", "request", "history"]) {
    const mine = part(id);
    const theirs = found.getElementById(id);
    if (!mine || !theirs || mine === document.activeElement) continue;
    if (id === "request") mine.replaceChildren(...theirs.childNodes);
    mine.value = theirs.value;
  }
  if (part("history")?.value) part("purchases").open = true;
}

async function load(address, keep) {
  const mine = ++last;
  const sign = setTimeout(() => { part("progress").hidden = false; }, SIGN);
  part("live").setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(address, { credentials: "omit" });
    const text = await answer.text();
    if (mine !== last) return;
    const html = (answer.headers.get("content-type") || "").startsWith("text/html");
    if (!html) throw new Error(text.trim());
    const found = new DOMParser().parseFromString(text, "text/html");
    fill(found);
    swap(found);
    const shared = part("address")?.getAttribute("href") || address;
    if (keep) history.replaceState(null, "", shared);
    else history.pushState(null, "", shared);
  } catch (error) {
    if (mine === last) part("status").textContent = `No answer: ${error.message}. Is "ospo page" still running?`;
  } finally {
    clearTimeout(sign);
    if (mine === last) {
      part("progress").hidden = true;
      part("live").removeAttribute("aria-busy");
    }
  }
}

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-live]")) return;
  event.preventDefault();
  clearTimeout(timer);
  load(addressOf(event.target), false);
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-live]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  clearTimeout(timer);
  load(link.getAttribute("href"), false);
});

document.addEventListener("input", (event) => {
  const form = event.target.form;
  if (!form || !form.matches("form[data-live]") || event.target.tagName === "SELECT") return;
  clearTimeout(timer);
  timer = setTimeout(() => load(addressOf(form), true), WAIT);
});

document.addEventListener("change", (event) => {
  const form = event.target.form;
  if (event.target.tagName !== "SELECT" || !form) return;
  clearTimeout(timer);
  if (!form.matches("form[data-live]")) form.submit();
  else if (event.target.id === "dataset") location.assign(`/?dataset=${encodeURIComponent(event.target.value)}`);
  else load(addressOf(form), false);
});

window.addEventListener("popstate", () => location.reload());
