function begin() {
  sessionStorage.visit = Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16)).join("");
}
if (!sessionStorage.visit) begin();
// A duplicated tab has a copy of the key: where its original is open, which answers, it is a visitor of its own.
const tabs = new BroadcastChannel("visits"), me = Math.random();
tabs.onmessage = ({ data: { key, from, to } }) => {
  if (key === sessionStorage.visit && !to) tabs.postMessage({ key, to: from });
  if (key === sessionStorage.visit && to === me) begin();
};
// Not of a page that is loaded anew, which may still answer itself.
if (performance.getEntriesByType("navigation")[0]?.type !== "reload") tabs.postMessage({ key: sessionStorage.visit, from: me });
function choose(files) {
  const input = document.querySelector("#image input[type=file]");
  if (!input || !files?.length) return;
  input.files = files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
document.addEventListener("paste", event => choose(event.clipboardData?.files));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", async event => {
  event.preventDefault();
  // Asked for before anything is waited for: the list ends with the event.
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry?.());
  if (!entries.some(entry => entry?.isDirectory)) return choose(event.dataTransfer.files);
  const data = new DataTransfer();
  for (const file of (await Promise.all(entries.map(filesOf))).flat()) data.items.add(file);
  choose(data.files);
});
async function filesOf(entry) {
  if (!entry?.isDirectory) return entry ? [await new Promise((done, fail) => entry.file(done, fail))] : [];
  const reader = entry.createReader(), found = [];
  // Each call gives a hundred entries at most.
  for (let part; (part = await new Promise((done, fail) => reader.readEntries(done, fail))).length;)
    found.push(...(await Promise.all(part.map(filesOf))).flat());
  return found;
}
document.addEventListener("click", event => {
  if (event.target.closest("#slider .empty")) document.querySelector("#image input[type=file]").click();
});
// A browser does not ask again for an image whose request a lost connection has cut.
document.addEventListener("error", ({ target }) => {
  if (!target.closest?.("#slider img")) return;
  // Later each time, because the server may have deleted it.
  target.tries = (target.tries ?? 0) + 1;
  setTimeout(() => target.isConnected && (target.src = target.src), 2000 * target.tries);
}, true);
addEventListener("pagehide", () => navigator.sendBeacon("leave/" + sessionStorage.visit));
// A page that the browser brings back from its memory has lost its connections.
addEventListener("pageshow", event => event.persisted && location.reload());
