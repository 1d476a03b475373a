// The recorder of the page: a button, a level meter and a transcript that grows.
//
// Gradio's own streaming recorder keeps only the newest block while the server is busy and drops the last block of every
// recording; words are lost. This one numbers its blocks, sends the next once the last is answered, joins what has piled
// up meanwhile, and sends the rest after the stop: the server gets every sample, in order (live.py).
// Gradio runs it as the body of a function with `element`, `server` and `trigger`.

const part = name => element.querySelector('.' + name);
const pause = ms => new Promise(done => setTimeout(done, ms));
const SEND_MS = 200, PATIENCE_MS = [300, 1000, 3000], LONGEST_SECONDS = 5;
const TAP = `
  class Tap extends AudioWorkletProcessor {
    constructor() {
      super();
      this.begin();
      this.port.onmessage = () => { this.send(); this.over = true; this.port.postMessage(null); };
    }
    begin() { this.block = new Int16Array(2048); this.used = 0; }
    send() { this.port.postMessage(this.block.slice(0, this.used)); this.begin(); }
    process(inputs) {
      for (const sample of inputs[0][0] || []) {
        this.block[this.used++] = Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
        if (this.used === this.block.length) this.send();
      }
      return !this.over;
    }
  }
  registerProcessor('tap', Tap);`;
let session = null;

function tell(words) { part('problem').textContent = words; }

function look(running, label) {
  part('record').setAttribute('aria-pressed', running);
  part('record').disabled = label === 'Finishing…';
  part('record').querySelector('span').textContent = label;
  if (!running) part('level').style.transform = 'scaleX(0)';
}

function show(answer) {
  if (answer.final !== undefined) {
    const tentative = answer.tentative.trimStart();  // the space before it is not underlined
    part('final').textContent = answer.final + (tentative === answer.tentative ? '' : ' ');
    part('tentative').textContent = tentative;
    const nothing = !answer.final && !answer.tentative;
    part('hint').textContent = !nothing ? '' : answer.ended ? 'No words were recognized.' : 'Listening…';
  }
  if (answer.problem) tell(answer.problem);
}

function microphoneProblem(error) {
  if (error.name === 'NotAllowedError')
    return 'The microphone is not allowed. Allow it for this page in the browser and press the button again.';
  if (error.name === 'NotFoundError') return 'No microphone was found. Plug one in, or use a recording.';
  return 'The microphone cannot be used: ' + error.message;
}

function base64(samples) {
  const bytes = new Uint8Array(samples.buffer);
  let text = '';
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

function take(one) {
  const blocks = [];
  let length = 0;
  while (one.waiting.length && length < LONGEST_SECONDS * one.rate) {
    blocks.push(one.waiting.shift());
    length += blocks[blocks.length - 1].length;
  }
  const joined = new Int16Array(length);
  let at = 0;
  for (const block of blocks) { joined.set(block, at); at += block.length; }
  return joined;
}

async function deliver(message) {
  for (const patience of [...PATIENCE_MS, 0]) {
    const answer = await server.accept_block(message);
    if (answer) return answer;
    await pause(patience);
  }
  return { ended: true, problem: 'The connection to the server is lost. Please start again.' };
}

async function send(one) {
  for (let ended = false, number = 0; !ended;) {
    await pause(SEND_MS);
    if (!element.isConnected) stop(one);
    const complete = one.complete, samples = take(one), last = complete && !one.waiting.length;
    if (!samples.length && !last) continue;
    const answer = await deliver({ recording: one.id, number, rate: one.rate, samples: base64(samples), last });
    number += 1;
    ended = answer.ended;
    show(answer);
  }
  release(one);
  session = null;
  look(false, 'Start speaking');
  trigger('submit', { recording: one.id });
}

function collect(one, block) {
  one.waiting.push(block);
  one.recorded += block.length;
  const seconds = Math.floor(one.recorded / one.rate);
  part('clock').textContent = Math.floor(seconds / 60) + ':' + String(seconds % 60).padStart(2, '0');
  const peak = block.reduce((most, sample) => Math.max(most, Math.abs(sample)), 1) / 32767;
  part('level').style.transform = 'scaleX(' + Math.max(0, 1 + Math.log10(peak) / 2.5) + ')';
}

function release(one) {
  one.stream.getTracks().forEach(track => track.stop());
  if (one.context.state !== 'closed') one.context.close();
}

function stop(one) {
  if (one.stopping) return;
  one.stopping = true;
  look(true, 'Finishing…');
  one.tap.port.postMessage('stop');
  // A busy audio thread sends its last block late; one that is gone never does.
  setTimeout(() => { one.complete = true; }, one.context.state === 'running' ? 10_000 : 1000);
}

async function start() {
  tell('');
  if (!navigator.mediaDevices)
    return tell('Browsers give the microphone only to pages at https:// or at localhost; this one is at neither.');
  part('record').disabled = true;
  const one = { waiting: [], recorded: 0, stopping: false, complete: false };
  try {
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };  // as in corpora
    one.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...plain } });
    one.context = new AudioContext();
    await one.context.audioWorklet.addModule(URL.createObjectURL(new Blob([TAP], { type: 'text/javascript' })));
    one.rate = one.context.sampleRate;
    one.id = crypto.randomUUID();
    one.tap = new AudioWorkletNode(one.context, 'tap', { channelCount: 1, channelCountMode: 'explicit' });
  } catch (error) {
    if (one.stream) one.stream.getTracks().forEach(track => track.stop());
    look(false, 'Start speaking');
    return tell(microphoneProblem(error));
  }
  one.tap.port.onmessage = event => event.data === null ? (one.complete = true) : collect(one, event.data);
  one.stream.getAudioTracks()[0].onended = () => stop(one);
  one.context.createMediaStreamSource(one.stream).connect(one.tap).connect(one.context.destination);
  session = one;
  trigger('clear');
  show({ final: '', tentative: '', ended: false });
  look(true, 'Stop');
  send(one);
}

part('record').addEventListener('click', () => session ? stop(session) : start());
