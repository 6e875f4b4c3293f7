/** Puts the viewer together. */

import { get, type Info } from './api';
import { commandsOf, listenToKeys, makeHelp, makeTools } from './commands';
import { DisplayPanel } from './display_panel';
import { byId, h } from './dom';
import { DownloadsPanel } from './downloads_panel';
import { FindingsPanel } from './findings_panel';
import { JobsPanel } from './jobs_panel';
import { Model, read } from './model';
import { startRendering } from './render';
import { SourcesPanel } from './sources_panel';
import { Stage } from './stage';
import { StudiesPanel } from './studies_panel';

async function main(): Promise<void> {
  performance.mark('start');
  const model = new Model();
  const asked = Promise.all([get<Info>('info'), read()]); // answered while the library loads
  asked.then(([, contents]) => model.foresee(contents)).catch(() => undefined);
  // For trying out: ?draw=cpu or ?draw=webgl instead of what suits the machine.
  document.documentElement.dataset.drawing = await startRendering(new URLSearchParams(location.search).get('draw'));
  performance.mark('library');
  const stage = new Stage(model);
  new StudiesPanel(model);
  const help = () => byId<HTMLDialogElement>('help').showModal();
  new FindingsPanel(model, stage, help);
  new DisplayPanel(model);
  new DownloadsPanel(model);
  const jobs = new JobsPanel(model);
  const sources = new SourcesPanel(model, jobs);
  const commands = commandsOf(model, stage, help);
  const showPressed = makeTools(commands);
  makeHelp(commands);
  listenToKeys(commands);
  model.listen((change) => {
    if (change === 'pointer' || change === 'study') showReadout(model);
    else showPressed();
  });
  const [info, contents] = await asked;
  model.info = info;
  byId('version').textContent = `mammoseg ${info.version}${info.bundle ? ` · weights ${info.bundle.name}` : ''}`;
  sources.offerServers(info.dicomweb);
  performance.mark('info');
  await model.take(contents);
  await jobs.watch();
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden)
      void model.refresh().then(
        () => jobs.watch(),
        (error: Error) => jobs.say(error.message),
      );
  });
}

/** The pixel under the pointer: which it is, where in mm, and its stored value. */
function showReadout(model: Model): void {
  const readout = byId('readout');
  const { pointed } = model;
  readout.classList.toggle('quiet', !pointed);
  if (!pointed) {
    readout.textContent = 'Point at an image to read its stored values here.';
    return;
  }
  const { entry, column, row, candidate } = pointed;
  const { spacing_mm, rescale } = entry.record;
  const value = model.pixels.value(entry.record, column, row);
  const parts = [entry.name, `column ${column}, row ${row}`];
  if (spacing_mm) {
    const [x, y] = [(column + 0.5) * spacing_mm[1], (row + 0.5) * spacing_mm[0]];
    parts.push(`x ${x.toFixed(1)} mm, y ${y.toFixed(1)} mm`);
  }
  parts.push(`stored value ${value ?? '…'}`);
  if (value !== null && (rescale.slope !== 1 || rescale.intercept !== 0)) {
    parts.push(`rescaled ${value * rescale.slope + rescale.intercept}`);
  }
  if (candidate) parts.push(`candidate, score ${candidate.score.toFixed(2)}`);
  readout.textContent = parts.join('  ·  ');
}

main().catch((error: Error) => {
  byId('stage').replaceChildren(h('p', { class: 'fatal', role: 'alert' }, `The viewer cannot start: ${error.message}`));
});
