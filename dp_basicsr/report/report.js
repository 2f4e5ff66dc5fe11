"use strict";

// ---- tables: a click on a head sorts by its column, the best first; a second one the other way; n/a stays at the end ----

function sortTable(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const [first, second] = head.classList.contains("highest") ? ["descending", "ascending"] : ["ascending", "descending"];
  const direction = head.getAttribute("aria-sort") === first ? second : first;
  const key = (row) => row.cells[column].dataset.value;
  const compare = (one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const numeric = head.classList.contains("number");
    const order = numeric ? number(a) - number(b) : a.localeCompare(b, undefined, { numeric: true });
    return direction === "ascending" ? order : -order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
  for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", direction);
}

function number(text) {
  return text === "inf" ? Number.MAX_VALUE : Number(text);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    cell.querySelector("button").addEventListener("click", () => sortTable(table, column));
  });
}

// ---- viewers: two versions of an image, divided by a line, zoomed and moved together ----

const MAX_ZOOM = 16;

class Viewer {
  constructor(figure) {
    this.figure = figure;
    this.stage = figure.querySelector(".stage");
    this.handle = figure.querySelector(".handle");
    this.layers = [...figure.querySelectorAll(".layer")];
    this.fingers = new Map();
    [this.split, this.zoom, this.x, this.y] = [50, 1, 0, 0];
    for (const side of ["left", "right"]) this.fillChooser(side);
    this.listen();
    this.update();
  }

  fillChooser(side) {
    const chooser = this.figure.querySelector(`.choose-${side}`);
    for (const layer of this.layers) chooser.add(new Option(layer.dataset.name, layer.dataset.name));
    chooser.value = this.figure.dataset[side];
    const show = () => {
      for (const layer of this.layers) layer.classList.toggle(side, layer.dataset.name === chooser.value);
      this.figure.querySelector(`.scores-${side}`).textContent = this.stage.querySelector(`.${side}`).dataset.scores;
    };
    chooser.addEventListener("change", show);
    show();
  }

  listen() {
    this.stage.addEventListener("pointerdown", (event) => this.press(event));
    this.stage.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) this.stage.addEventListener(end, (event) => this.release(event));
    this.stage.addEventListener("dblclick", (event) => this.zoomAt(this.zoom > 1 ? 1 : 4, event));
    this.stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // the wheel alone scrolls the page
      event.preventDefault();
      this.zoomAt(this.zoom * Math.exp(-event.deltaY / 200), event);
    }, { passive: false });
    this.handle.addEventListener("keydown", (event) => this.key(event));
    for (const button of this.figure.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => this.zoomAt(this.zoom * (button.dataset.zoom === "in" ? 2 : 0.5)));
    }
    new ResizeObserver(() => this.zoomAt(this.zoom)).observe(this.stage);
  }

  press(event) {
    this.fingers.set(event.pointerId, event);
    this.stage.setPointerCapture(event.pointerId);
    this.moves = this.zoom > 1 && event.target !== this.handle;
    if (!this.moves && this.fingers.size === 1) this.divide(event);
  }

  move(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    if (this.fingers.size === 2) {
      const other = [...this.fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      this.zoomAt(this.zoom * apart(event) / Math.max(1, apart(before)), event);
    } else if (this.moves) {
      [this.x, this.y] = [this.x + event.clientX - before.clientX, this.y + event.clientY - before.clientY];
      this.update();
    } else {
      this.divide(event);
    }
    this.fingers.set(event.pointerId, event);
  }

  release(event) {
    this.fingers.delete(event.pointerId);
  }

  divide(event) {
    const box = this.stage.getBoundingClientRect();
    this.setSplit(100 * (event.clientX - box.left) / box.width);
  }

  key(event) {
    const step = { ArrowLeft: -2, ArrowRight: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.setSplit(this.split + step);
  }

  setSplit(percent) {
    this.split = Math.min(100, Math.max(0, percent));
    this.update();
  }

  // Zoom so that the point under the pointer (or the centre) stays where it is.
  zoomAt(zoom, event) {
    const box = this.stage.getBoundingClientRect();
    const [px, py] = event ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
    const next = Math.min(MAX_ZOOM, Math.max(1, zoom));
    this.x = px - (px - this.x) * next / this.zoom;
    this.y = py - (py - this.y) * next / this.zoom;
    this.zoom = next;
    this.update();
  }

  update() {
    const box = this.stage.getBoundingClientRect();
    this.x = Math.min(0, Math.max(box.width * (1 - this.zoom), this.x));
    this.y = Math.min(0, Math.max(box.height * (1 - this.zoom), this.y));
    const style = { "--split": `${this.split}%`, "--zoom": this.zoom, "--x": `${this.x}px`, "--y": `${this.y}px` };
    for (const [name, value] of Object.entries(style)) this.stage.style.setProperty(name, value);
    this.stage.classList.toggle("zoomed", this.zoom > 1);
    this.stage.classList.toggle("close", this.zoom >= 4); // single pixels, not the browser's interpolation of them
    this.handle.setAttribute("aria-valuenow", Math.round(this.split));
    this.figure.querySelector("output").textContent = `${Number(this.zoom.toFixed(1))}×`;
  }
}

for (const figure of document.querySelectorAll(".viewer")) new Viewer(figure);
