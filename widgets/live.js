// One plotly figure on a page. The kernel sends its traces and layout as text; the page draws the present state.

// What the kernel writes for ink, lines and paper takes the colours of the page's theme, so that a figure fits a dark
// page as well as a light one.
const THEMED = {
  "#222222": "--jp-ui-font-color1",
  "#e3e3e3": "--jp-border-color2",
  "#ffffff": "--jp-layout-color1",
};

// What of a mesh is changed past plotly.
const RECOLOURED = ["intensity", "colorscale", "cmin", "cmax", "hovertemplate"];

const CODE = "var Plotly=(()=>{";

function load(source) {
  // The file's code stands in two functions more than it needs. It fails on purpose here and there to learn what the
  // browser can do, and each first time the browser reads again all functions around that place, 5 MB each: without
  // the outer two it is there in half the time.
  const [from, to] = [source.indexOf(CODE) + CODE.length, source.lastIndexOf("})();")];
  if (from >= CODE.length && to > from) {
    try {
      const found = new Function('"use strict";' + source.slice(from, to))();
      if (found?.react) return found;
    } catch {
      // then as it stands
    }
  }
  const module = { exports: {} };
  new Function("module", "exports", "define", source)(module, module.exports, undefined);
  return module.exports;
}

// every figure of a page shares one copy; it is 5 MB
function library(shelf) {
  // what the page has to do first goes first
  globalThis.__bmflPlotly ??= new Promise((done) =>
    setTimeout(() => {
      drawnByProcessor();
      done(load(shelf.get("source")));
    }),
  );
  return globalThis.__bmflPlotly;
}

// Whether WebGL is drawn by the processor, as without a graphics card: there every triangle and every sample counts.
function drawnByProcessor() {
  globalThis.__bmflSlow ??= (() => {
    const gl = document.createElement("canvas").getContext("webgl");
    const about = gl?.getExtension("WEBGL_debug_renderer_info");
    const name = about ? gl.getParameter(about.UNMASKED_RENDERER_WEBGL) : "";
    gl?.getExtension("WEBGL_lose_context")?.loseContext();
    return /swiftshader|llvmpipe|softpipe|software/i.test(name);
  })();
  return globalThis.__bmflSlow;
}

// Plotly asks for four samples a pixel, and for a picture that is gone once it has been shown; it has no option for it.
// And while it makes a surface it asks after each step of compiling whether it worked, which waits for the processor to
// finish; that a program can be run it asks once more at the end.
function sparing(act) {
  const own = HTMLCanvasElement.prototype.getContext;
  const gl = WebGLRenderingContext.prototype;
  const { isProgram, isShader, getShaderParameter } = gl;
  gl.isProgram = gl.isShader = Boolean;
  gl.getShaderParameter = function (shader, what) {
    return what === gl.COMPILE_STATUS || getShaderParameter.call(this, shader, what);
  };
  HTMLCanvasElement.prototype.getContext = function (kind, how) {
    const spared = { ...how, antialias: false, preserveDrawingBuffer: true };
    return own.call(this, kind, how?.antialias ? spared : how);
  };
  try {
    return act();
  } finally {
    Object.assign(gl, { isProgram, isShader, getShaderParameter });
    HTMLCanvasElement.prototype.getContext = own;
  }
}

// plotly draws both sides of each triangle of a mesh and hands its corners over in the opposite order; of a closed
// surface only the outer side is ever seen
function outerSides(mesh, gl, act) {
  const disable = gl.disable;
  gl.disable = (what) => what === gl.CULL_FACE || disable.call(gl, what);
  gl.enable(gl.CULL_FACE);
  gl.cullFace(gl.FRONT);
  try {
    act();
    mesh.outer = true;
  } finally {
    delete gl.disable;
    gl.disable(gl.CULL_FACE);
  }
}

// draw meshes of the same shape as before over what is there, from the same side: the rest of the picture stays
function drawOver(plot, meshes) {
  const gl = plot.gl;
  gl.bindFramebuffer(gl.FRAMEBUFFER, null);
  gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
  gl.colorMask(true, true, true, true);
  gl.depthMask(true);
  gl.disable(gl.BLEND);
  gl.enable(gl.DEPTH_TEST);
  gl.depthFunc(gl.LEQUAL);
  for (const mesh of meshes) {
    mesh.draw(plot.cameraParams);
    mesh.dirty = false;
  }
}

// the shelf is sent before the first figure is made, so that the page reads the library while the kernel works
function initialize({ model }) {
  if (model.get("source")) library(model);
}

function colours(element) {
  const style = getComputedStyle(element);
  return Object.entries(THEMED).map(([fixed, name]) => [`"${fixed}"`, style.getPropertyValue(name).trim() || fixed]);
}

// numbers as they are sent: a list, or in single precision as base64 text
function numbersOf(sent) {
  if (!sent?.bdata) return sent;
  return new Float32Array(Uint8Array.from(atob(sent.bdata), (letter) => letter.charCodeAt(0)).buffer);
}

function ownKeys(frame) {
  // else JupyterLab takes the keys of a list or a slider, an arrow or an x, for commands on its cells; it looks for this
  // mark from the focused element upwards, and most of its commands are bound to that element itself
  if (!frame || frame.dataset.ownKeys) return;
  frame.dataset.ownKeys = "true";
  frame.addEventListener("focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
}

async function render({ model, el }) {
  const make = (name) => Object.assign(document.createElement("div"), { className: name });
  const [whole, title, box, bar] = ["bmfl-figure", "bmfl-key-title", "", "bmfl-key-bar"].map(make);
  whole.append(title, box, bar);
  whole.style.minHeight = model.get("height") + "px";
  whole.setAttribute("role", "img");
  el.style.width = "100%";
  el.appendChild(whole);
  const [Plotly, still, news, beat] = await Promise.all([
    model.widget_manager.get_model(model.get("library")).then(library),
    ...["still_id", "news_id", "beat_id"].map((place) => model.widget_manager.get_model(model.get(place))),
  ]);
  const known = {};
  let told = {};
  let seldom = null;
  let look = colours(el);
  const part = (name) => {
    const text = told[name] ?? "{}";
    if (known[name]?.text !== text) {
      const themed = look.reduce((found, [from, to]) => found.replaceAll(from, JSON.stringify(to)), text);
      known[name] = { text, value: JSON.parse(themed) };
    }
    return known[name].value;
  };
  const send = (p) => {
    const index = typeof p.pointNumber === "number" ? p.pointNumber : -1;
    model.set("clicked", JSON.stringify({ trace: p.curveNumber, index, x: p.x, y: p.y, at: performance.now() }));
    model.save_changes();
  };
  const solid = () => Boolean(box._fullLayout?.scene);
  // on a surface plotly only hears of a click while the button is down at the moment it draws, which a short click on a
  // busy page misses: what lies under the pointer is remembered, and sent when the button is let go in the same place
  let under = null;
  const listen = () => {
    box.on("plotly_click", (event) => solid() || send(event.points[0]));
    for (const name of ["plotly_hover", "plotly_click"]) box.on(name, (event) => (under = event.points[0]));
    box.on("plotly_unhover", () => (under = null));
  };
  const plot = () => box._fullLayout?.scene?._scene?.glplot;
  let near = false;
  const spare = () => {
    for (const thing of plot()?.objects ?? []) {
      if (thing.spared) continue;
      thing.spared = true;
      const { draw, drawPick } = thing;
      if ("triangleCount" in thing) thing.draw = (how) => outerSides(thing, plot().gl, () => draw.call(thing, how));
      // what lies under the pointer plotly finds by drawing the surface once more, out of sight, after every change;
      // that is left out until the pointer is over the figure
      if (drawPick) thing.drawPick = (how) => near && drawPick.call(thing, how);
    }
  };
  box.addEventListener("pointerenter", () => {
    near = true;
    plot()?.update();
    plot()?.redraw();
  });
  box.addEventListener("pointerleave", () => (near = false));
  let pressed = null;
  box.addEventListener("pointerdown", (event) => (pressed = event.button === 0 ? event : null), true);
  box.addEventListener(
    "pointerup",
    (event) => {
      const moved = pressed ? Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) : Infinity;
      pressed = null;
      if (!solid() || moved > 4) return;
      // plotly looks for what is under the pointer in its next frame
      requestAnimationFrame(() => requestAnimationFrame(() => under && send(under)));
    },
    true,
  );
  // plotly builds every mesh anew when one of them changes; those that never change need not be touched
  const keepStill = () => {
    const drawn = box._fullLayout?.scene?._scene?.traces ?? {};
    for (const trace of (box._fullData ?? []).slice(0, model.get("fixed"))) {
      const mesh = drawn[trace.uid];
      if (mesh?.update) mesh.update = (data) => { mesh.data = data; };
    }
  };
  // the bar of buttons is for turning a surface; the widget itself saves pictures
  const config = () => ({
    displaylogo: false,
    displayModeBar: part("look").scene ? "hover" : false,
    plotGlPixelRatio: Math.max(1, window.devicePixelRatio),
  });
  let waiting = false;
  let painted = null;
  // give the mesh of parts "v0", "t0", "v1", ... its values and colours and draw it, past plotly, which would lay out
  // the whole figure; false where more than that is new
  const recolour = (names) => {
    const found = new Map();
    for (const name of names.filter((name) => name !== "key")) {
      const number = /^[tv]/.test(name) ? Number(name.slice(1)) : -1;
      const [mesh, own] = [box._fullLayout?.scene?._scene?.traces?.["trace" + number], box.data?.[number]];
      if (!mesh?.update || !box._fullData?.[number]) return false;
      const sent = { ...part(name) };
      if (sent.intensity) sent.intensity = numbersOf(sent.intensity);
      if (sent.intensity && sent.intensity.length !== box._fullData[number].x.length) return false;
      const other = Object.keys(sent).filter((k) => !RECOLOURED.includes(k));
      if (other.some((k) => JSON.stringify(own[k]) !== JSON.stringify(sent[k]))) return false;
      found.set(number, { ...found.get(number), ...sent });
    }
    const meshes = [...found].map(([number, sent]) => {
      const [full, drawn] = [box._fullData[number], box._fullLayout.scene._scene.traces["trace" + number]];
      for (const key of RECOLOURED.filter((key) => key in sent)) box.data[number][key] = full[key] = sent[key];
      drawn.update(full);
      return drawn.mesh;
    });
    if (!meshes.length) return true;
    // the first picture plotly draws before its meshes are spared: along the edges inner sides are seen in it
    const spared = plot().objects.every((thing) => thing.outer || !("triangleCount" in thing));
    const kept = plot().gl.getContextAttributes()?.preserveDrawingBuffer && spared;
    // what stands beside the pointer only a whole draw brings up to date
    if (kept && !near) drawOver(plot(), meshes);
    else plot().redraw();
    plot().gl.flush();
    return true;
  };
  const label = () => {
    title.innerHTML = part("key").title ?? "";
    bar.innerHTML = part("key").bar ?? "";
    whole.setAttribute("aria-label", title.textContent || (part("look").title?.text || "").trim() || "figure");
  };
  const draw = () => {
    waiting = false;
    ownKeys(el.closest(".bmfl-frame"));
    if (seldom !== still.get("value")) {
      seldom = still.get("value");
      told = JSON.parse(seldom);
    }
    Object.assign(told, JSON.parse(news.get("value")));
    const { change, ...shown } = told;
    const state = { ...shown, look: [told.look, JSON.stringify(look)] };
    // a figure that stays as it is costs nothing, one of which only values of a surface change little
    const changed = Object.keys(state).filter((k) => String(painted?.[k]) !== String(state[k]));
    const first = painted === null;
    if (first || changed.includes("key") || changed.includes("look")) label();
    if (!first && recolour(changed)) {
      painted = state;
      box.dataset.change = String(change);
      return;
    }
    painted = state;
    const numbers = [...Array(told.n_traces).keys()];
    const data = numbers.map((i) => ({ uid: "trace" + i, ...part("b" + i), ...part("t" + i), ...part("v" + i) }));
    const layout = () => structuredClone(part("look"));
    const react = () => Plotly.react(box, data, layout(), config());
    const done = drawnByProcessor() && !box.dataset.drawn ? sparing(react) : react();
    if (!box.dataset.drawn) listen();
    done.catch(() => {
      // what cannot be changed into the new figure is drawn anew
      Plotly.purge(box);
      Plotly.newPlot(box, data, layout(), config());
      listen();
    });
    keepStill();
    spare();
    plot()?.gl.flush();
    box.dataset.drawn = String(1 + Number(box.dataset.drawn ?? 0));
    box.dataset.change = String(change);
  };
  const later = () => {
    if (!waiting) {
      waiting = true;
      // all figures of a widget are drawn in one frame, a surface first: it is computed while the others are drawn
      const ask = () => requestAnimationFrame(draw);
      if (solid()) ask();
      else queueMicrotask(ask);
    }
  };
  beat.on("change:value", later);
  draw();
  // also called once at the start, when the figure has just been drawn in this size
  const seen = new ResizeObserver(() => box.clientWidth !== box._fullLayout?.width && Plotly.Plots.resize(box));
  seen.observe(box);
  const dressed = new MutationObserver(() => {
    const now = colours(el);
    if (JSON.stringify(now) !== JSON.stringify(look)) {
      look = now;
      Object.keys(known).forEach((name) => delete known[name]);
      later();
    }
  });
  dressed.observe(document.body, { attributes: true });
  return () => {
    seen.disconnect();
    dressed.disconnect();
    beat.off("change:value", later);
    Plotly.purge(box);
  };
}

export default { initialize, render };
