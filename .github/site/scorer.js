// The order of what a search finds: the glossary, the methods' own pages, the lessons; last what is about the project.
var Scorer = {
  score: ([page, title, anchor, description, score]) => score + (
    page == "lessons/GLOSSARY" ? 60 :
    /^tinypeft\/(peft|quant)\//.test(page) ? 40 :
    /^(tinypeft\/commands\/README|README)$/.test(page) ? 50 :
    /^(lessons\/\d|map$)/.test(page) ? 20 :
    /^(tests|project|CHANGELOG)/.test(page) ? -40 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 40, partialTitle: 15, term: 5, partialTerm: 2,
};
