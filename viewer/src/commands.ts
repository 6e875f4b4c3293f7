/** Everything that can be done by key or button, once: the keyboard, the tool bar and the help sheet are made of it. */

import { byId, h } from './dom';
import type { Options } from './entry';
import type { Model } from './model';
import type { Stage } from './stage';
import { widen } from './window';

/** keys: as in `KeyboardEvent.key`. tool: the text of its button, where it has one. pressed: whether it is on. */
export interface Command {
  readonly group: string;
  readonly keys: readonly string[];
  readonly label: string;
  readonly run: (key: string) => void;
  readonly tool?: string;
  readonly pressed?: () => boolean;
}

const PAN = 60;
const ZOOM = 1.25;

export function commandsOf(model: Model, stage: Stage, help: () => void): Command[] {
  const flip = (option: keyof Options) => () =>
    model.setOptions({ [option]: !model.options[option] } as Partial<Options>);
  const onActive = (act: (entry: NonNullable<typeof model.activeEntry>) => void) => () => {
    if (model.activeEntry) act(model.activeEntry);
  };
  const shift = (by: number) =>
    onActive((entry) => {
      const window = model.windowFor(entry);
      if (window) model.setWindow(entry, { ...window, center: window.center + by * window.width });
    });
  const spread = (factor: number) =>
    onActive((entry) => {
      const window = model.windowFor(entry);
      if (window) model.setWindow(entry, widen(window, factor));
    });
  const scales = () => model.setOptions({ scales: Array<boolean>(8).fill(!model.options.scales.some((on) => on)) });
  const place = (k: number) => {
    const image = model.pages[model.page]?.[k - 1];
    if (image) model.setLayout('one', image.image_id);
  };
  const toggle = (layout: 'one' | 'pair') => () => model.setLayout(model.layout === layout ? 'four' : layout);
  const layout = (wanted: string) => () => model.layout === wanted;
  const views = 'Views';
  const look = 'Image';
  const over = 'Overlays';
  return [
    {
      group: views,
      keys: ['0', 'Escape'],
      label: 'Four views',
      tool: 'Four views',
      run: () => model.setLayout('four'),
      pressed: layout('four'),
    },
    {
      group: views,
      keys: ['1', '2', '3', '4'],
      label: 'One view large: by its place',
      run: (key) => place(Number(key)),
    },
    {
      group: views,
      keys: ['Enter'],
      label: 'One view large, and back',
      tool: 'One view',
      run: toggle('one'),
      pressed: layout('one'),
    },
    {
      group: views,
      keys: ['s'],
      label: 'Side by side: without | with overlays',
      tool: 'Side by side',
      run: toggle('pair'),
      pressed: layout('pair'),
    },
    { group: views, keys: ['n'], label: 'Next lesion', run: () => stage.step(1) },
    { group: views, keys: ['p'], label: 'Previous lesion', run: () => stage.step(-1) },
    { group: views, keys: ['PageDown'], label: 'More images of the study', run: () => model.turnPage(1) },
    { group: views, keys: ['PageUp'], label: 'Earlier images of the study', run: () => model.turnPage(-1) },
    { group: look, keys: ['+', '='], label: 'Zoom in', run: () => stage.zoom(ZOOM) },
    { group: look, keys: ['-'], label: 'Zoom out', run: () => stage.zoom(1 / ZOOM) },
    { group: look, keys: ['ArrowLeft'], label: 'Move left', run: () => stage.pan(PAN, 0) },
    { group: look, keys: ['ArrowRight'], label: 'Move right', run: () => stage.pan(-PAN, 0) },
    { group: look, keys: ['ArrowUp'], label: 'Move up', run: () => stage.pan(0, PAN) },
    { group: look, keys: ['ArrowDown'], label: 'Move down', run: () => stage.pan(0, -PAN) },
    { group: look, keys: ['f'], label: 'Fit to the pane', tool: 'Fit', run: () => stage.fit() },
    { group: look, keys: ['z'], label: 'One to one', tool: '1:1', run: () => stage.actualSize() },
    {
      group: look,
      keys: ['i'],
      label: 'Invert',
      tool: 'Invert',
      run: onActive((entry) => model.invert(entry)),
      pressed: () => model.activeEntry?.invertedByReader ?? false,
    },
    { group: look, keys: ['.'], label: 'Brighter', run: shift(-0.05) },
    { group: look, keys: [','], label: 'Darker', run: shift(0.05) },
    { group: look, keys: ['['], label: 'Narrower window: more contrast', run: spread(0.9) },
    { group: look, keys: [']'], label: 'Wider window: less contrast', run: spread(1 / 0.9) },
    {
      group: look,
      keys: ['r'],
      label: 'Window of the file again',
      tool: 'Reset window',
      run: onActive((entry) => model.setWindow(entry, null)),
    },
    { group: look, keys: ['x'], label: 'Mirror left and right', run: () => stage.mirror() },
    { group: over, keys: ['o'], label: 'All overlays', run: flip('overlays') },
    { group: over, keys: ['c'], label: 'Contours', run: flip('contours') },
    { group: over, keys: ['b'], label: 'Boxes', run: flip('boxes') },
    { group: over, keys: ['a'], label: 'Other candidates', run: flip('candidates') },
    { group: over, keys: ['l'], label: 'Numbers and sizes', run: flip('labels') },
    { group: over, keys: ['t'], label: 'Truth, where there is one', run: flip('truth') },
    { group: over, keys: ['m'], label: 'Fusion mask', run: flip('mask') },
    { group: over, keys: ['d'], label: 'Detections at single scales', run: scales },
    { group: over, keys: ['?', 'h'], label: 'This sheet', tool: 'Help', run: help },
  ];
}

/** Listens to the keyboard; keys that belong to an input or a button are left to it. */
export function listenToKeys(commands: readonly Command[]): void {
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
    const target = event.target as HTMLElement;
    if (target.matches('input:not([type=checkbox]), select, textarea') && event.key !== 'Escape') return;
    if (target.matches('button, a, input') && ['Enter', ' '].includes(event.key)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const command = commands.findLast(({ keys }) => keys.includes(key));
    if (!command) return;
    event.preventDefault();
    command.run(key);
  });
}

/** The buttons of the tool bar; gives back a function that shows which of them are on. */
export function makeTools(commands: readonly Command[]): () => void {
  const tools = commands.filter((command) => command.tool !== undefined);
  const buttons = tools.map((command) => {
    const title = `${command.label} (${command.keys.map(keyName).join(' or ')})`;
    return h('button', { type: 'button', title, onclick: () => command.run('') }, command.tool ?? '');
  });
  byId('tools').append(...buttons);
  return () => {
    buttons.forEach((button, k) => {
      const pressed = tools[k]?.pressed;
      if (pressed) button.setAttribute('aria-pressed', String(pressed()));
    });
  };
}

const MOUSE: readonly [what: string, does: string][] = [
  ['Wheel', 'Zoom'],
  ['Drag', 'Move'],
  ['Right drag', 'Window: across is width, up is brighter (or Shift and drag)'],
  ['Click', 'Choose a lesion; the view is the active one, with the orange border'],
  ['Double click', 'One view large, and back'],
];
const WORDS: readonly [what: string, means: string][] = [
  ['Lesion', 'Reported: a box fused from all scales that reaches the operating point, outlined and measured'],
  ['Candidate', 'Any other fused box with a score: dashed, not outlined. Point at one to read its score'],
  ['Score at least', 'Hides lesions and candidates on the screen; files hold every lesion reported'],
  ['Mₛ ≥ λ', 'Where the scales agree enough to make a lesion’s box'],
];

/** The help sheet, filled once: the mouse first, then keys, then what the words mean. */
export function makeHelp(commands: readonly Command[]): void {
  const groups = [...new Set(commands.map(({ group }) => group))];
  const close = h(
    'button',
    { type: 'button', autofocus: true, onclick: () => byId<HTMLDialogElement>('help').close() },
    'Close',
  );
  const section = (title: string, lines: readonly (readonly (Node | string)[])[]) =>
    h('section', {}, h('h3', {}, title), h('dl', {}, ...lines.flatMap(([a, b]) => [h('dt', {}, a ?? ''), h('dd', {}, b ?? '')])));
  byId('help').append(
    h('h2', { id: 'help-title' }, 'Mouse and keys'),
    h(
      'div',
      { class: 'sheet' },
      section('Mouse', MOUSE),
      ...groups.map((group) => section(group, commands.filter((command) => command.group === group).map(line))),
      section('What the words mean', WORDS),
    ),
    close,
  );
}

function line({ keys, label }: Command): (Node | string)[] {
  return [h('span', {}, ...keys.flatMap((key, k) => [k > 0 ? ' ' : '', h('kbd', {}, keyName(key))])), label];
}

function keyName(key: string): string {
  const names: Record<string, string> = {
    ArrowLeft: '←',
    ArrowRight: '→',
    ArrowUp: '↑',
    ArrowDown: '↓',
    Escape: 'Esc',
    PageDown: 'Page ↓',
    PageUp: 'Page ↑',
  };
  return names[key] ?? (key.length === 1 ? key.toUpperCase() : key);
}
