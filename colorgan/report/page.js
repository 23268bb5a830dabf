"use strict"
// The report's only script: sorting, values under the pointer, enlarged pictures with a slider, contents.
// Without it the page shows everything; nothing is fetched.

// --- Tables: a click on a column's head sorts by it; numbers by value, the rest by text.
const value = cell => {
  const text = cell.textContent.trim().replace(/−/g, "-").replace(/,(?=\d{3})/g, "")
  const number = /^[+-]?\d+(\.\d+)?/.exec(text)
  return number ? Number(number[0]) : null
}
const compare = (a, b) => {
  const [x, y] = [value(a), value(b)]
  if (x !== null && y !== null) return x - y
  if (x !== null || y !== null) return x === null ? 1 : -1
  return a.textContent.localeCompare(b.textContent)
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells]
  heads.forEach((head, column) => {
    const sort = () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1
      const rows = [...table.tBodies[0].rows]
      rows.sort((a, b) => sign * compare(a.cells[column], b.cells[column]))
      table.tBodies[0].append(...rows)
      heads.forEach(each => each.setAttribute("aria-sort", "none"))
      head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending")
    }
    head.setAttribute("aria-sort", "none")
    head.tabIndex = 0
    head.addEventListener("click", sort)
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort() })
  })
}

// --- Charts: the nearest point of each line under the pointer.
const nearest = (points, x) =>
  points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best)
const element = (parent, tag, name) => {
  const made = document.createElement(tag)
  if (name) made.className = name
  parent.append(made)
  return made
}
for (const chart of document.querySelectorAll("[data-points]")) {
  const data = JSON.parse(chart.dataset.points)
  const rule = element(chart, "div", "rule"), tip = element(chart, "div", "tip")
  const hide = () => { rule.hidden = tip.hidden = true }
  const show = event => {
    const area = chart.getBoundingClientRect()
    const [left, top, width, height] = data.box
    const share = ((event.clientX - area.left) / area.width - left) / width
    if (share < 0 || share > 1) return hide()
    const x = data.x[0] + share * (data.x[1] - data.x[0])
    const at = nearest(data.lines.flatMap(line => line.points), x)[0]
    const place = left + width * (at - data.x[0]) / (data.x[1] - data.x[0])
    rule.hidden = tip.hidden = false
    Object.assign(rule.style, {
      left: `${100 * place}%`, top: `${100 * top}%`, height: `${100 * height}%`
    })
    tip.replaceChildren()
    element(tip, "span").textContent = `${at.toLocaleString("en")} images`
    for (const line of data.lines.slice(0, 8)) {
      const entry = element(tip, "span")
      element(entry, "i").style.background = `var(--line-${line.color})`
      entry.append(`${line.name}: ${nearest(line.points, at)[1]} ${data.unit}`)
    }
    Object.assign(tip.style, place > .5
      ? { right: `${100 * (1 - place) + 2}%`, left: "auto", top: `${100 * top}%` }
      : { left: `${100 * place + 2}%`, right: "auto", top: `${100 * top}%` })
  }
  chart.addEventListener("pointermove", show)
  chart.addEventListener("pointerdown", show)
  chart.addEventListener("pointerleave", hide)
  hide()
}

// --- Pictures: enlarged; of grey, colored and original a slider uncovers one after the other.
const dialog = document.querySelector("dialog")
const stage = dialog.querySelector(".stage"), slider = dialog.querySelector("input")
const shown = dialog.querySelector(".shown")
const slide = () => {
  const layers = [...stage.children]
  if (layers.length < 3) return
  const place = Number(slider.value)
  layers[1].style.clipPath = `inset(0 ${100 - Math.min(100, place)}% 0 0)`
  layers[2].style.clipPath = `inset(0 ${100 - Math.max(0, place - 100)}% 0 0)`
  shown.textContent = layers.map(layer => layer.alt).join("  |  ")
}
const enlarge = image => {
  const row = image.closest(".compare .photo")
  const images = row ? [...row.querySelectorAll("img")] : [image]
  stage.replaceChildren(...images.map(each => {
    const copy = new Image()
    copy.src = each.src
    copy.alt = each.alt
    return copy
  }))
  slider.hidden = images.length < 3
  slider.value = [0, 100, 200][images.indexOf(image)] ?? 0
  shown.textContent = image.alt
  slide()
  dialog.showModal()
}
for (const image of document.querySelectorAll(".photo img, img.whole")) {
  image.tabIndex = 0
  image.setAttribute("role", "button")
  image.addEventListener("click", () => enlarge(image))
  image.addEventListener("keydown", event => { if (event.key === "Enter") enlarge(image) })
}
slider.addEventListener("input", slide)
dialog.querySelector("button").addEventListener("click", () => dialog.close())
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close() })

// --- Contents: closed on a phone, the current section marked; a link opens a folded section.
const contents = document.querySelector("nav details")
if (matchMedia("(max-width: 70rem)").matches) contents.open = false
const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]))
for (const [key, link] of links) {
  link.addEventListener("click", () => {
    document.getElementById(key).querySelector("details").open = true
    if (matchMedia("(max-width: 70rem)").matches) contents.open = false
  })
}
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue
    links.forEach(link => link.removeAttribute("aria-current"))
    links.get(entry.target.id)?.setAttribute("aria-current", "true")
  }
}, { rootMargin: "0px 0px -75% 0px" })
document.querySelectorAll("section").forEach(section => watcher.observe(section))
