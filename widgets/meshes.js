// What is done to plotly's surfaces past plotly, most of it to spare machines without a graphics card.

// What of a mesh is changed past plotly.
const RECOLOURED = ["intensity", "colorscale", "cmin", "cmax", "hovertemplate"];

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

const isMesh = (thing) => "triangleCount" in thing;

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

// numbers as they are sent: a list, or in single precision as base64 text
function numbersOf(sent) {
  if (!sent?.bdata) return sent;
  return new Float32Array(Uint8Array.from(atob(sent.bdata), (letter) => letter.charCodeAt(0)).buffer);
}

// What is done to the meshes of a figure past plotly; `box` is the element plotly draws in.
class Surface {
  constructor(box) {
    // the box has no height before plotly draws in it: a pointer that rests there enters it then
    Object.assign(this, { box, near: false });
    box.addEventListener("pointerenter", () => {
      this.near = true;
      this.plot?.update();
      this.plot?.redraw();
    });
    box.addEventListener("pointerleave", () => (this.near = false));
  }

  get scene() {
    return this.box._fullLayout?.scene?._scene;
  }

  get plot() {
    return this.scene?.glplot;
  }

  // plotly builds every mesh anew when one of them changes; the first `fixed` never change and need not be touched
  keepStill(fixed) {
    const drawn = this.scene?.traces ?? {};
    for (const trace of (this.box._fullData ?? []).slice(0, fixed)) {
      const mesh = drawn[trace.uid];
      if (mesh?.update) mesh.update = (data) => { mesh.data = data; };
    }
  }

  spare() {
    for (const thing of this.plot?.objects ?? []) {
      if (thing.spared) continue;
      thing.spared = true;
      const { draw, drawPick } = thing;
      if (isMesh(thing)) thing.draw = (how) => outerSides(thing, this.plot.gl, () => draw.call(thing, how));
      // what lies under the pointer plotly finds by drawing the surface once more, out of sight, after every change;
      // that is left out until the pointer is over the figure
      if (drawPick) thing.drawPick = (how) => this.near && drawPick.call(thing, how);
    }
  }

  // what the named parts ("v0", "t0", "v1", ...) say of each mesh, by its number; null where more than that is new
  news(names, part) {
    const found = new Map();
    for (const name of names) {
      const number = /^[tv]/.test(name) ? Number(name.slice(1)) : -1;
      const [own, full] = [this.box.data?.[number], this.box._fullData?.[number]];
      if (!this.scene?.traces?.["trace" + number]?.update || !full) return null;
      const sent = { ...part(name) };
      if (sent.intensity) sent.intensity = numbersOf(sent.intensity);
      if (sent.intensity && sent.intensity.length !== full.x.length) return null;
      const other = Object.keys(sent).filter((key) => !RECOLOURED.includes(key));
      if (other.some((key) => JSON.stringify(own[key]) !== JSON.stringify(sent[key]))) return null;
      found.set(number, { ...found.get(number), ...sent });
    }
    return found;
  }

  // give meshes their values and colours and draw them
  recolour(news) {
    const meshes = [...news].map(([number, sent]) => {
      const [full, drawn] = [this.box._fullData[number], this.scene.traces["trace" + number]];
      for (const key of RECOLOURED.filter((key) => key in sent)) this.box.data[number][key] = full[key] = sent[key];
      drawn.update(full);
      return drawn.mesh;
    });
    if (!meshes.length) return;
    // the first picture plotly draws before its meshes are spared: along the edges inner sides are seen in it
    const spared = this.plot.objects.every((thing) => thing.outer || !isMesh(thing));
    const kept = this.plot.gl.getContextAttributes()?.preserveDrawingBuffer && spared;
    // what stands beside the pointer only a whole draw brings up to date
    if (kept && !this.near) this.drawOver(meshes);
    else this.plot.redraw();
    this.plot.gl.flush();
  }

  // draw meshes of the same shape as before over what is there, from the same side: the rest of the picture stays
  drawOver(meshes) {
    const gl = this.plot.gl;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.colorMask(true, true, true, true);
    gl.depthMask(true);
    gl.disable(gl.BLEND);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    for (const mesh of meshes) {
      mesh.draw(this.plot.cameraParams);
      mesh.dirty = false;
    }
  }
}
