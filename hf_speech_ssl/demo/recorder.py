"""The recorder of the page: a button, a level meter and a transcript that grows, in the browser.

Gradio's own streaming recorder keeps only the newest block while the server is busy and drops the last block of every
recording; words are lost. This one numbers its blocks, sends the next once the last is answered, joins what has piled
up meanwhile, and sends the rest after the stop: the server hears every sample, in order (`live.py`).
"""

HTML = """
<div class="recorder">
  <div class="bar">
    <button type="button" class="record" aria-pressed="false"><i></i><span>Start speaking</span></button>
    <div class="meter" aria-hidden="true"><div class="level"></div></div>
    <span class="clock" aria-hidden="true">0:00</span>
  </div>
  <div class="transcript" aria-live="polite" aria-label="Live transcript">
    <span class="hint">Words appear here while you speak.</span><span class="final"></span><span
    class="tentative"></span>
  </div>
  <div class="problem" role="alert"></div>
</div>
"""

CSS = """
.bar { display: flex; align-items: center; gap: 14px; }
.record { display: inline-flex; align-items: center; justify-content: center; gap: 10px; min-width: 172px;
  min-height: 46px; padding: 0 20px; border: 0; border-radius: 23px; background: #1d4ed8; color: white;
  font: inherit; font-weight: 600; cursor: pointer; }
.record:hover { background: #1e40af; }
.record:focus-visible { outline: 3px solid #93c5fd; outline-offset: 2px; }
.record:disabled { opacity: 0.6; cursor: default; }
.record span { color: white; }
.record i { width: 12px; height: 12px; border-radius: 50%; background: white; }
.record[aria-pressed="true"] { background: #b91c1c; }
.record[aria-pressed="true"] i { border-radius: 2px; }
.meter { flex: 1; height: 8px; border-radius: 4px; overflow: hidden; background: var(--border-color-primary); }
.level { height: 100%; border-radius: 4px; background: #16a34a; transform: scaleX(0); transform-origin: left;
  transition: transform 0.1s linear; }
.clock { min-width: 3em; text-align: right; font-variant-numeric: tabular-nums;
  color: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.transcript { min-height: 120px; margin-top: 16px; padding: 16px 18px; border: 1px solid var(--border-color-primary);
  border-radius: 12px; background: var(--background-fill-primary); font-size: 1.35rem; line-height: 1.5;
  overflow-wrap: anywhere; }
.final { color: var(--body-text-color); }
.tentative, .hint { color: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.tentative { font-style: italic; text-decoration: underline dotted; text-underline-offset: 5px; }
.problem { margin-top: 10px; padding: 8px 14px; border-left: 4px solid #dc2626; border-radius: 4px;
  background: color-mix(in srgb, #dc2626 12%, transparent); color: var(--body-text-color); }
.problem:empty { display: none; }
"""

JAVASCRIPT = r"""
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
    part('hint').textContent = !nothing ? '' : answer.ended ? 'No words were heard.' : 'Listening…';
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
    const answer = await server.hear_block(message);
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

function hear(one, block) {
  one.waiting.push(block);
  one.heard += block.length;
  const seconds = Math.floor(one.heard / one.rate);
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
  setTimeout(() => { one.complete = true; }, 1000);  // where the audio thread is gone already
}

async function start() {
  tell('');
  if (!navigator.mediaDevices)
    return tell('Browsers give the microphone only to pages at https:// or at localhost; this one is at neither.');
  part('record').disabled = true;
  const one = { waiting: [], heard: 0, stopping: false, complete: false };
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
  one.tap.port.onmessage = event => event.data === null ? (one.complete = true) : hear(one, event.data);
  one.stream.getAudioTracks()[0].onended = () => stop(one);
  one.context.createMediaStreamSource(one.stream).connect(one.tap).connect(one.context.destination);
  session = one;
  trigger('clear');
  show({ final: '', tentative: '', ended: false });
  look(true, 'Stop');
  send(one);
}

part('record').addEventListener('click', () => session ? stop(session) : start());
"""
