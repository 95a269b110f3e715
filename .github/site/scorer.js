// The order of what a search finds. Sphinx rates names of methods and words of the glossary above titles, titles and headings
// above text. It finds "quantize" in the glossary's "dequantize", too: a word that was typed in part counts less here.
// Among equals come the commands, the lessons, methods and schemes, the rest, and last what is about the project.
const PLACES = [/^tinypeft\/commands/, /^lessons\/\d/, /^tinypeft\/(peft|quant)/, /^(README|map|tinypeft)/, /^(?!project)/, /^/];
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) =>
    score - PLACES.findIndex(place => place.test(page)) - (kind == "index" && score < 100 ? 75 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
