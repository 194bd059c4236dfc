// The page "Try it": loads Python from this site, runs try_it.py for each move of a slider, and draws what it returns.
const here = new URL(".", import.meta.url);
const form = document.getElementById("playground"), said = document.getElementById("try-it-said");
const COLOURS = { penstock: "#1f6f8b", "retry only": "#c2512f", overwrite: "#d08a2e" };
let simulate = null, busy = false, again = false;

function options() {
  const numbers = Object.fromEntries([...form.querySelectorAll("input")].map(each => [each.name, Number(each.value)]));
  return { ...numbers, kind: form.elements.kind.value };
}

function curves(id, title, lines, top) {
  const width = 640, height = 170, left = 50;
  const x = (at, all) => left + at / (all - 1) * (width - left - 10), y = value => height - 20 - value / top * (height - 50);
  const path = line => line.values.map((value, at) => `${x(at, line.values.length).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const drawn = lines.map(line => `<polyline points="${path(line)}" fill="none" stroke="${line.colour}" stroke-width="2"`
    + (line.dashed ? ' stroke-dasharray="5 4"' : "") + "/>").join("");
  const legend = lines.map((line, at) => `<text x="${left + at * 150}" y="32" fill="${line.colour}">${line.name}</text>`).join("");
  document.getElementById(id).innerHTML = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" `
    + `font-size="12" font-family="sans-serif"><text x="${left}" y="14" fill="currentColor">${title}</text>${legend}${drawn}`
    + `<text x="44" y="${y(top) + 4}" text-anchor="end" fill="currentColor">${Math.round(top).toLocaleString("en")}</text>`
    + `<text x="44" y="${y(0) + 4}" text-anchor="end" fill="currentColor">0</text></svg>`;
}

const summed = values => values.reduce((sums, value) => [...sums, (sums.at(-1) ?? 0) + value], []);

function show({ ways: results, program }) {
  document.getElementById("try-it-code").textContent = program;
  const used = results.map(each => ({ name: each.way, colour: COLOURS[each.way], values: summed(each.used) }));
  const allowed = { name: "allowed", colour: "#66727f", dashed: true, values: results[0].used.map((_, at) => results[0].allowed * (at + 1)) };
  const refused = results.map(each => ({ name: each.way, colour: COLOURS[each.way], values: summed(each.refused) }));
  const most = lines => Math.max(1, ...lines.flatMap(line => line.values));
  curves("try-it-used", "tokens let through in a minute", [...used, allowed], most([...used, allowed]));
  curves("try-it-refused", "refusals (429)", refused, most(refused));
  const queue = results.flatMap(each => ["alice", "bob"].map(flow =>
    ({ name: `${each.way}: ${flow}`, colour: COLOURS[each.way], dashed: flow === "bob", values: each.waiting[flow] })))
    .filter(line => !line.name.startsWith("overwrite"));
  curves("try-it-queue", "calls that wait, by flow", queue, most(queue));
  said.textContent = results.map(each => `${each.way}: ${Math.round(summed(each.used).at(-1)).toLocaleString("en")} tokens, `
    + `${summed(each.refused).at(-1).toLocaleString("en")} refusals`).join(" · ");
}

async function update() {
  for (const each of form.querySelectorAll("input")) each.nextElementSibling.textContent = Number(each.value).toLocaleString("en");
  if (busy || !simulate) { again = busy; return; }
  busy = true;
  said.textContent = "running…";
  await new Promise(done => setTimeout(done, 20));
  try { show(JSON.parse(simulate(JSON.stringify(options())))); } catch (error) { said.textContent = `failed: ${error}`; }
  busy = false;
  if (again) { again = false; update(); }
}

try {
  const { loadPyodide } = await import(new URL("pyodide/pyodide.mjs", here));
  const python = await loadPyodide({ indexURL: new URL("pyodide/", here).href });
  python.unpackArchive(await (await fetch(new URL("pyodide/packages.zip", here))).arrayBuffer(), "zip");
  python.FS.writeFile("try_it.py", await (await fetch(new URL("try_it.py", here))).text());
  simulate = python.runPython("import try_it; try_it.simulate_all");
  form.addEventListener("input", update);
  await update();
} catch (error) {
  said.textContent = `This page needs the site as \`make try-it\` builds it, served over HTTP. (${error})`;
}
