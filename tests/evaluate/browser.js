// As much of a browser as the page of a study needs. Arguments: the page's script. Prints what two visitors see as JSON.
const fs = require('fs'), vm = require('vm'), source = fs.readFileSync(process.argv[2], 'utf8');
const QUESTIONS = ['motion', 'appearance', 'background', 'identity'];
const PARTS = ['start', 'first', 'pair', 'end', 'sofar', 'another', 'early'];

function visit(stored) {
  const parts = {}, files = [];
  const part = id => parts[id] ??= {id, hidden: false, value: '', textContent: '', play: () => Promise.resolve()};
  part('form').elements = Object.fromEntries(QUESTIONS.map(name => [name, {value: ''}]));
  part('form').reset = () => QUESTIONS.forEach(name => { part('form').elements[name].value = ''; });
  vm.runInNewContext(source, {
    document: {
      getElementById: part, querySelectorAll: () => [], body: {append() {}},
      createElement: () => ({click() { files.push(this.href); }, remove() {}}),
    },
    localStorage: {
      getItem: key => stored[key] ?? null, setItem: (key, text) => { stored[key] = text; },
      removeItem: key => { delete stored[key]; },
    },
    crypto: globalThis.crypto, scrollTo() {}, confirm: () => true,
    URL: {createObjectURL: blob => blob.text}, Blob: class { constructor(parts) { this.text = parts[0]; } },
  });
  const seen = () => PARTS.filter(id => !part(id).hidden);
  const press = id => { part(id).onclick(); return seen(); };
  const answer = () => {
    press('seen');
    QUESTIONS.forEach(name => { part('form').elements[name].value = 'left'; });
    part('form').onchange();
    if (part('send').disabled) throw new Error('answers are given and cannot be sent');
    part('form').onsubmit({preventDefault() {}});
    return seen();
  };
  return {seen, press, answer, part, files: () => files.map(text => JSON.parse(text))};
}

const stored = {}, told = {}, ann = visit(stored);
told.loaded = ann.seen();
ann.part('person').value = 'Ann';
ann.press('begin');
told.answered = ann.answer();
told.early = (ann.press('sofar'), ann.files()[0]);
ann.answer();
const ben = visit(stored); // the page is loaded again
told.again = ben.seen();
told.saved = (ben.press('early'), ben.files()[0]);
told.another = ben.press('another');
ben.press('begin');
while (!ben.seen().includes('end')) ben.answer();
told.whole = (ben.press('file'), ben.files()[1]);
told.next = ben.press('next');
console.log(JSON.stringify(told));
