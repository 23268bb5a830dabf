"use strict"
// Colors a photo as `colorgan colorize` does: its lightness is shrunk to the network's square, the chroma that comes
// out is brought back to the photo's size and joined with its own lightness. Nothing is sent anywhere.

// --- Color: sRGB and CIELAB with scikit-image's constants, as in shards/decoding/lab.py and colored.py.
const XYZ_FROM_RGB = [[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]]
const WHITE = [0.95047, 1, 1.08883]
const inverse = matrix => {
  const at = (row, column) => matrix[row % 3][column % 3]
  // Rows and columns are taken round the corner, which gives each cofactor its sign.
  const cofactor = (r, c) => at(r + 1, c + 1) * at(r + 2, c + 2) - at(r + 1, c + 2) * at(r + 2, c + 1)
  const determinant = [0, 1, 2].reduce((sum, c) => sum + at(0, c) * cofactor(0, c), 0)
  return [0, 1, 2].map(r => [0, 1, 2].map(c => cofactor(c, r) / determinant))
}
const [R, G, B] = inverse(XYZ_FROM_RGB).map(row => row.map((weight, i) => weight * WHITE[i]))

const linear = value => value > 0.04045 ? ((value + 0.055) / 1.055) ** 2.4 : value / 12.92
const LINEAR_256 = Float64Array.from({ length: 256 }, (_, byte) => linear(byte / 255))
const labCurve = t => t > 0.008856 ? Math.cbrt(t) : 7.787 * t + 16 / 116
const cube = root => root > 0.2068966 ? root * root * root : (root - 16 / 116) / 7.787
const yOf = (r, g, b) => XYZ_FROM_RGB[1][0] * r + XYZ_FROM_RGB[1][1] * g + XYZ_FROM_RGB[1][2] * b
const lightness = (r, g, b) => 116 * labCurve(yOf(linear(r), linear(g), linear(b))) - 16

// Light from which each byte is the nearest, and the byte at the lower end of each bin of light: no bin holds two steps.
const NUM_BINS = 4096
const STEPS = [...Array.from({ length: 256 }, (_, byte) => linear((byte - 0.5) / 255)), Infinity]
const BYTES_OF_BINS = Uint8Array.from({ length: NUM_BINS + 1 }, (_, bin) =>
  STEPS.findIndex(step => step > bin / NUM_BINS) - 1)
const toByte = light => {
  const clipped = Math.min(Math.max(light, 0), 1)
  const below = BYTES_OF_BINS[Math.floor(clipped * NUM_BINS)]
  return clipped >= STEPS[below + 1] ? below + 1 : below
}

// Writes one pixel with the lightness of the RGBA bytes at `at` and other a and b.
const recolor = (source, target, at, a, b) => {
  const root = labCurve(yOf(LINEAR_256[source[at]], LINEAR_256[source[at + 1]], LINEAR_256[source[at + 2]]))
  const x = cube(root + a / 500), y = cube(root), z = cube(Math.max(root - b / 200, 0))
  target[at] = toByte(R[0] * x + R[1] * y + R[2] * z)
  target[at + 1] = toByte(G[0] * x + G[1] * y + G[2] * z)
  target[at + 2] = toByte(B[0] * x + B[1] * y + B[2] * z)
  target[at + 3] = 255
}

// --- Resizing: bicubic (a = -1/2), wider where it shrinks, as torch's `interpolate(antialias=True)`.
const bicubic = distance => {
  const x = Math.abs(distance)
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0
}
// For each place of the result: where its neighbors start, and their weights.
const tapsOf = (from, to) => Array.from({ length: to }, (_, i) => {
  const scale = from / to, width = Math.max(scale, 1), center = scale * (i + 0.5)
  const start = Math.max(Math.floor(center - 2 * width + 0.5), 0)
  const end = Math.min(Math.floor(center + 2 * width + 0.5), from)
  const weights = Array.from({ length: end - start }, (_, j) => bicubic((start + j - center + 0.5) / width))
  const sum = weights.reduce((total, weight) => total + weight, 0)
  return { start, weights: Float64Array.from(weights, weight => weight / sum) }
})
// One value of a result: values at `offset`, `offset + stride`, ... weighted.
const weighted = (values, { start, weights }, offset, stride) => {
  let sum = 0
  for (let j = 0, at = offset + start * stride; j < weights.length; j++, at += stride) sum += weights[j] * values[at]
  return sum
}

// --- The page: what it says.
const main = document.querySelector("main"), statusLine = document.querySelector("#status")
const imageSize = Number(main.dataset.imageSize), abScale = Number(main.dataset.abScale)
const say = (text, isError = false) => {
  statusLine.textContent = text
  statusLine.classList.toggle("error", isError)
}
// Time for the browser to show what was said. By the clock: a tab in the background draws no frames.
const pause = () => new Promise(done => setTimeout(done, 30))

// --- Loading: a page from the disk may run scripts but read no files, so bytes come as scripts.
const loadScript = name => new Promise((done, fail) => {
  const script = document.createElement("script")
  script.src = name
  script.onload = () => { script.remove(); done() }
  script.onerror = () => fail(new Error(`${name} cannot be loaded: copy the page's folder whole`))
  document.head.append(script)
})
let part = ""
const takePart = text => { part = text }
const loadBytes = async (names, about) => {
  const parts = []
  for (const name of names) {
    if (about) say(`Loading ${about}: part ${parts.length + 1} of ${names.length}`)
    await loadScript(name)
    // The browser decodes base64 many times faster than a loop.
    const answer = await fetch(`data:application/octet-stream;base64,${part}`)
    parts.push(await answer.arrayBuffer())
  }
  part = ""
  return new Uint8Array(await new Blob(parts).arrayBuffer())
}
const loadNetwork = async () => {
  const [module, wasm, network] = ["module", "wasm", "network"].map(kind => main.dataset[kind].split(" "))
  say("Loading the runtime")
  await loadScript(main.dataset.runtime)
  // More threads need headers that no plain server sends.
  ort.env.wasm.numThreads = 1
  const code = new Blob([await loadBytes(module)], { type: "text/javascript" })
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(code) }
  ort.env.wasm.wasmBinary = (await loadBytes(wasm)).buffer
  const bytes = await loadBytes(network, "the network")
  say("Preparing the network")
  await pause()
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] })
}

// --- Coloring.
// Returns L / 50 - 1 of RGBA bytes, squashed to the network's square; width first, as Python does.
const luminanceSquare = (pixels, width, height) => {
  const columns = tapsOf(width, imageSize), rows = tapsOf(height, imageSize)
  const narrow = new Float32Array(height * imageSize * 3)
  for (let y = 0; y < height; y++)
    for (let x = 0; x < imageSize; x++)
      for (let c = 0; c < 3; c++)
        narrow[(y * imageSize + x) * 3 + c] = weighted(pixels, columns[x], y * width * 4 + c, 4) / 255

  const square = new Float32Array(imageSize * imageSize), stride = imageSize * 3
  for (let y = 0; y < imageSize; y++)
    for (let x = 0; x < imageSize; x++) {
      // Bicubic overshoots at edges; Lab of values outside sRGB is not defined.
      const [r, g, b] = [0, 1, 2].map(c => Math.min(Math.max(weighted(narrow, rows[y], x * 3 + c, stride), 0), 1))
      square[y * imageSize + x] = lightness(r, g, b) / 50 - 1
    }
  return square
}
const predictChroma = async (session, square) => {
  const luminance = new ort.Tensor("float32", square, [1, 1, imageSize, imageSize])
  return (await session.run({ luminance })).chroma.data
}
// Writes the grey and the colored photo; `chroma` is the network's, a and b over `abScale`.
const recolorAll = async (pixels, width, height, chroma, grey, colored, tell) => {
  const columns = tapsOf(imageSize, width), rows = tapsOf(imageSize, height), plane = imageSize * imageSize
  const a = new Float32Array(imageSize), b = new Float32Array(imageSize)
  // Clamped: the resize overshoots, and the network's values end at 1.
  const ab = (values, taps) => abScale * Math.min(Math.max(weighted(values, taps, 0, 1), -1), 1)
  const stripRows = Math.max(1, Math.floor(2 ** 19 / width))
  for (let y = 0; y < height; y++) {
    if (y % stripRows === 0) {
      tell(y / height)
      await pause()
    }
    for (let x = 0; x < imageSize; x++) {
      a[x] = weighted(chroma, rows[y], x, imageSize)
      b[x] = weighted(chroma, rows[y], plane + x, imageSize)
    }
    for (let x = 0, at = y * width * 4; x < width; x++, at += 4) {
      recolor(pixels, grey, at, 0, 0)
      recolor(pixels, colored, at, ab(a, columns[x]), ab(b, columns[x]))
    }
  }
}

// --- A photo's way through the page.
const MAX_MEGAPIXELS = 64
const [figure, stage, slider, caption, save] =
  ["figure", ".stage", "figure input", "figcaption", "button"].map(name => document.querySelector(name))
const drop = document.querySelector(".drop"), input = drop.querySelector("input")
const canvases = ["grey", "colored", "taken"].map(name => stage.querySelector(`.${name}`))
let savedName = "colored.png"

const decode = async file => {
  const bitmap = await createImageBitmap(file).catch(() => null)
  if (!bitmap) throw new Error(`${file.name} cannot be read by this browser: choose a JPEG, PNG or WebP photo`)
  const { width, height } = bitmap
  if (width * height > MAX_MEGAPIXELS * 1e6)
    throw new Error(`${file.name} has ${width} x ${height} pixels: this page takes ${MAX_MEGAPIXELS} megapixels`)

  for (const canvas of canvases) Object.assign(canvas, { width, height })
  const pen = canvases[2].getContext("2d", { willReadFrequently: true })
  // Transparency is laid on white.
  pen.fillStyle = "#fff"
  pen.fillRect(0, 0, width, height)
  pen.drawImage(bitmap, 0, 0)
  bitmap.close()
  return pen.getImageData(0, 0, width, height)
}
const colorPhoto = async file => {
  say(`Reading ${file.name}`)
  await pause()
  const { data, width, height } = await decode(file)
  const session = await ready
  say("Predicting colors; the page does not answer meanwhile")
  await pause()
  const chroma = await predictChroma(session, luminanceSquare(data, width, height))

  const [grey, colored] = [new ImageData(width, height), new ImageData(width, height)]
  await recolorAll(data, width, height, chroma, grey.data, colored.data, share =>
    say(`Coloring ${width} x ${height} pixels: ${Math.round(100 * share)} %`))
  canvases[0].getContext("2d").putImageData(grey, 0, 0)
  canvases[1].getContext("2d").putImageData(colored, 0, 0)
  savedName = `${file.name.replace(/\.[^.]*$/, "")}-colored.png`
  caption.textContent = `${file.name}, ${width} x ${height} pixels`
}

// Grey covers colored, which covers the photo as it was: the slider takes one after the other away.
const slide = () => {
  const at = Number(slider.value)
  canvases[0].style.clipPath = `inset(0 0 0 ${Math.min(at, 100)}%)`
  canvases[1].style.clipPath = `inset(0 0 0 ${Math.max(at - 100, 0)}%)`
  const name = at < 50 ? "grey" : at > 150 ? "as it was" : "colored"
  slider.setAttribute("aria-valuetext", name)
  stage.setAttribute("aria-label", `The photo: ${name}`)
}

let isBusy = false
const take = async files => {
  if (isBusy || !files.length) return
  isBusy = input.disabled = true
  drop.classList.add("busy")
  figure.hidden = true
  try {
    await colorPhoto(files[0])
    slider.value = 100
    slide()
    figure.hidden = false
    say("Done. The slider goes from grey to colored to the photo as it was.")
  } catch (error) {
    say(error.message, true)
  }
  isBusy = input.disabled = false
  drop.classList.remove("busy")
  input.value = ""
}

input.addEventListener("change", () => take([...input.files]))
slider.addEventListener("input", slide)
// The whole page takes a drop: beside the field the browser would open the photo instead.
for (const name of ["dragenter", "dragover", "dragleave", "drop"])
  document.addEventListener(name, event => {
    event.preventDefault()
    drop.classList.toggle("over", name === "dragenter" || name === "dragover")
    if (name === "drop") take([...event.dataTransfer.files])
  })
save.addEventListener("click", () => canvases[1].toBlob(blob => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: savedName })
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
}))

// At once, not with the first photo: choosing one takes longer.
const ready = loadNetwork()
ready.then(() => { if (!isBusy) say("Ready.") }, error => say(error.message, true))
