sessionStorage.visit ||= Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16)).join("");
function choose(files) {
  const input = document.querySelector("#image input[type=file]");
  if (!input || !files?.length) return;
  input.files = files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
document.addEventListener("paste", event => choose(event.clipboardData?.files));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => {
  event.preventDefault();
  choose(event.dataTransfer?.files);
});
document.addEventListener("click", event => {
  if (event.target.closest("#slider .empty")) document.querySelector("#image input[type=file]").click();
});
addEventListener("pagehide", () => navigator.sendBeacon("leave/" + sessionStorage.visit));
// A page that the browser brings back from its memory has lost its connections.
addEventListener("pageshow", event => event.persisted && location.reload());
