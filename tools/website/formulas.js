// Read a list of [TeX, display] from the standard input and print a list of HTML: what KaTeX makes of each.
const katex = require("katex");

const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
const render = ([tex, displayMode]) => katex.renderToString(tex, { displayMode, strict: "error" });
console.log(JSON.stringify(formulas.map(render)));
