/** What is drawn over an image: fusion mask, single-scale detections, candidates, lesions, truth. Native frame in, screen out. */

import type { Candidate, Layers, Lesion, Truth } from './api';
import { type Box, type Point, type Size, toScreen, type View } from './geometry';

export const LESION = '#ffb020';
export const CANDIDATE = '#7cc4ff';
export const TRUTH = '#5ee08a';
/** One colour for each single scale, told apart also by those who see few colours (after Okabe and Ito). */
export const SCALES = ['#56b4e9', '#f0e442', '#cc79a7', '#d55e00', '#00b894', '#b39ddb', '#a3a3a3', '#c7f464'];

export interface Drawing {
  readonly lesions: readonly Lesion[];
  readonly candidates: readonly Candidate[];
  readonly layers: Layers | null;
  /** Single-scale detections that score less are not drawn. */
  readonly threshold: number;
  readonly truth: Truth | null;
  readonly selected: number | null;
  /** The candidate under the pointer. */
  readonly pointed: Candidate | null;
  /** Width and height of what stands in the upper corners, left and right. */
  readonly plates: readonly Point[];
  readonly show: {
    contours: boolean;
    boxes: boolean;
    candidates: boolean;
    labels: boolean;
    mask: boolean;
    scales: readonly boolean[];
  };
  readonly opacity: number;
}

/** Draws on a canvas that covers the pane. ratio: device pixels for one CSS pixel. */
export function drawOverlay(canvas: HTMLCanvasElement, pane: Size, view: View, ratio: number, drawing: Drawing | null) {
  const [width, height] = [Math.round(pane.width * ratio), Math.round(pane.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext('2d');
  if (!context) return;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!drawing) return;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.globalAlpha = drawing.opacity;
  new Pen(context, pane, view).all(drawing);
}

const LABEL_FROM = 32; // CSS pixels, as all here
const [LABEL, SMALL_LABEL] = [13, 12]; // heights
const MASK = 0.3; // opacity: tissue and contours stay visible

interface Label {
  readonly text: string;
  readonly left: number;
  readonly y: number;
  readonly colour: string;
}

type FusionMask = NonNullable<Layers['fusion_mask']>;

class Pen {
  /** Where words are: none are written over others. */
  private readonly taken: Box[] = [];
  /** Scores of boxes that are no lesions, written when all lines are drawn. */
  private readonly scores: Label[] = [];

  constructor(
    private readonly context: CanvasRenderingContext2D,
    private readonly pane: Size,
    private readonly view: View,
  ) {}

  all(drawing: Drawing): void {
    const { lesions, candidates, layers, threshold, truth, selected, pointed, show, opacity } = drawing;
    const [left = [0, 0], right = [0, 0]] = drawing.plates;
    this.taken.push([0, 0, left[0] + 4, left[1] + 4], [this.pane.width - right[0] - 4, 0, this.pane.width, right[1] + 6]);
    const labels = show.labels ? this.labelsOf(lesions, selected) : [];
    if (layers?.fusion_mask && show.mask) this.mask(layers.fusion_mask, layers.lambda, opacity);
    layers?.scales.forEach((scale, k) => {
      if (!show.scales[k]) return;
      const found = scale.detections.filter(({ score }) => score >= threshold);
      for (const one of found) this.scored(one, SCALES[k % SCALES.length] as string, [], show.labels);
    });
    if (show.candidates) for (const found of candidates) this.scored(found, CANDIDATE, [5, 4], show.labels);
    for (const mass of truth?.lesions ?? []) this.truth(mass);
    for (const lesion of lesions) this.lesion(lesion, lesion.id === selected, show);
    for (const { text, left, y, colour } of this.scores) this.text(text, left, y, colour, SMALL_LABEL);
    for (const { text, left, y, colour } of labels) this.text(text, left, y, colour, LABEL);
    if (pointed && candidates.includes(pointed)) this.pointed(pointed);
  }

  /** The candidate under the pointer: plain to see, with its score over all else. */
  private pointed({ box_xyxy, score }: Candidate): void {
    this.context.globalAlpha = 1;
    this.box(box_xyxy, CANDIDATE, [5, 4], 2);
    const [x1, y1, , y2] = this.rectangle(box_xyxy);
    this.text(score.toFixed(2), Math.max(x1, 3), y2 + 16 < this.pane.height ? y2 + 16 : y1 - 7, CANDIDATE, LABEL);
  }

  private lesion(lesion: Lesion, selected: boolean, show: Drawing['show']): void {
    if (show.contours && show.mask) this.outline(lesion.contour_xy, '#000000', 4); // stands out from the mask's yellow
    if (show.contours) this.outline(lesion.contour_xy, LESION, selected ? 2.5 : 1.75);
    if (show.boxes) this.box(lesion.box_xyxy, LESION, [], selected ? 2 : 1);
    if (!selected) return;
    const [x1, y1, x2, y2] = this.rectangle(lesion.box_xyxy);
    this.corners([x1 - 6, y1 - 6, x2 + 6, y2 + 6]);
  }

  /** Four corner marks around the selected lesion, which cover nothing of it. */
  private corners([x1, y1, x2, y2]: Box): void {
    const arm = Math.max(6, Math.min(16, (x2 - x1) / 4));
    this.context.beginPath();
    for (const [x, y, dx, dy] of [
      [x1, y1, 1, 1],
      [x2, y1, -1, 1],
      [x1, y2, 1, -1],
      [x2, y2, -1, -1],
    ] as const) {
      this.context.moveTo(x + dx * arm, y);
      this.context.lineTo(x, y);
      this.context.lineTo(x, y + dy * arm);
    }
    this.stroke('#ffffff', 1.5, []);
  }

  private truth(mass: Truth['lesions'][number]): void {
    if (mass.contours_xy.length === 0) this.box(mass.box_xyxy, TRUTH, [7, 3], 1.5);
    for (const contour of mass.contours_xy) this.outline(contour, TRUTH, 1.5, [7, 3]);
  }

  /** A box that fades with its score, with the score below it where it is large enough for that. */
  private scored({ box_xyxy, score }: Candidate, colour: string, dash: number[], labelled: boolean): void {
    const { context } = this;
    const whole = context.globalAlpha;
    context.globalAlpha = whole * (0.4 + 0.6 * score);
    this.box(box_xyxy, colour, dash, 1.25);
    const [x1, , x2, y2] = this.rectangle(box_xyxy);
    if (labelled && x2 - x1 >= LABEL_FROM) {
      const text = score.toFixed(2);
      const left = this.room(text, x1, y2 + 13, SMALL_LABEL);
      if (left !== null) this.scores.push({ text, left, y: y2 + 13, colour });
    }
    context.globalAlpha = whole;
  }

  /** M_s of Eq. 1 as colour, on the cells where it is constant; what reaches λ has a white rim. */
  private mask({ x_edges, y_edges, values }: FusionMask, lambda: number, opacity: number): void {
    const cell = (row: number, column: number) => values[row]?.[column] ?? 0;
    const reaches = (row: number, column: number) => cell(row, column) > 0 && cell(row, column) >= lambda - 1e-9;
    const { context } = this;
    const rim = new Path2D();
    for (let row = 0; row + 1 < y_edges.length; row++) {
      for (let column = 0; column + 1 < x_edges.length; column++) {
        const value = cell(row, column);
        if (value <= 0) continue;
        const box = [x_edges[column], y_edges[row], x_edges[column + 1], y_edges[row + 1]] as unknown as Box;
        const [x1, y1, x2, y2] = this.rectangle(box);
        context.globalAlpha = MASK * opacity;
        context.fillStyle = heat(value);
        context.fillRect(x1, y1, x2 - x1, y2 - y1);
        if (!reaches(row, column)) continue;
        const [before, after] = this.view.mirrored ? [column + 1, column - 1] : [column - 1, column + 1];
        if (!reaches(row, before)) line(rim, x1, y1, x1, y2);
        if (!reaches(row, after)) line(rim, x2, y1, x2, y2);
        if (!reaches(row - 1, column)) line(rim, x1, y1, x2, y1);
        if (!reaches(row + 1, column)) line(rim, x1, y2, x2, y2);
      }
    }
    context.globalAlpha = opacity;
    context.setLineDash([]);
    context.strokeStyle = '#ffffff';
    context.lineWidth = 1.5;
    context.stroke(rim);
  }

  /** Number, score and size of each lesion: above its box, or below where there is no room, best first, the chosen one before. */
  private labelsOf(lesions: readonly Lesion[], selected: number | null): Label[] {
    const rank = ({ id, score }: Lesion) => (id === selected ? 2 : score);
    return [...lesions]
      .sort((a, b) => rank(b) - rank(a))
      .flatMap((lesion) => {
        const [x1, y1, , y2] = this.rectangle(lesion.box_xyxy);
        const size = sizeOf(lesion);
        const text = `${lesion.id}  ${lesion.score.toFixed(2)}${size ? `  ${size}` : ''}`;
        const colour = lesion.id === selected ? '#ffffff' : LESION;
        for (const y of y1 > 24 ? [y1 - 9, y2 + 19] : [y2 + 19]) {
          const left = this.room(text, x1, y, LABEL);
          if (left !== null) return { text, left, y, colour };
        }
        return [];
      });
  }

  /** Takes the room for a text at about (x, y), the left end of its base line: its left end, or null where others are. */
  private room(text: string, x: number, y: number, height: number): number | null {
    const { context, pane, taken } = this;
    context.font = fontOf(height);
    const width = context.measureText(text).width;
    const left = Math.min(Math.max(x, 2), pane.width - width - 6);
    const box: Box = [left - 3, y - height, left + width + 3, y + 4];
    if (taken.some((other) => overlap(box, other))) return null;
    taken.push(box);
    return left;
  }

  private text(text: string, left: number, y: number, colour: string, height: number): void {
    const { context } = this;
    const whole = context.globalAlpha;
    context.globalAlpha = 1; // lines fade, words do not
    context.font = fontOf(height);
    const width = context.measureText(text).width;
    context.fillStyle = 'rgba(0, 0, 0, 0.75)';
    context.fillRect(left - 3, y - height, width + 6, height + 4);
    context.fillStyle = colour;
    context.fillText(text, left, y);
    context.globalAlpha = whole;
  }

  private outline(points: readonly Point[], colour: string, width: number, dash: number[] = []): void {
    this.context.beginPath();
    for (const point of points) this.context.lineTo(...(toScreen(this.view, this.pane, point) as [number, number]));
    this.context.closePath();
    this.stroke(colour, width, dash);
  }

  private box(box: Box, colour: string, dash: number[], width: number): void {
    const [x1, y1, x2, y2] = this.rectangle(box);
    this.context.beginPath();
    this.context.rect(x1, y1, x2 - x1, y2 - y1);
    this.stroke(colour, width, dash);
  }

  private stroke(colour: string, width: number, dash: number[]): void {
    this.context.setLineDash(dash);
    this.context.strokeStyle = colour;
    this.context.lineWidth = width;
    this.context.lineJoin = 'round';
    this.context.stroke();
  }

  /** A native box on the screen, left side first also where the image is mirrored. */
  private rectangle([x1, y1, x2, y2]: Box): Box {
    const [ax, ay] = toScreen(this.view, this.pane, [x1, y1]);
    const [bx, by] = toScreen(this.view, this.pane, [x2, y2]);
    return [Math.min(ax, bx), ay, Math.max(ax, bx), by];
  }
}

function fontOf(height: number): string {
  return `600 ${height}px system-ui, sans-serif`;
}

function overlap(a: Box, b: Box): boolean {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

function line(path: Path2D, x1: number, y1: number, x2: number, y2: number): void {
  path.moveTo(x1, y1);
  path.lineTo(x2, y2);
}

/** From violet (0) over red to yellow (1): lightness grows with the value. */
export function heat(value: number): string {
  const v = Math.min(Math.max(value, 0), 1);
  return `hsl(${Math.round(280 + 130 * v) % 360} 95% ${Math.round(35 + 27 * v)}%)`;
}

/** Long by short axis in mm, or null where the spacing is unknown. */
export function sizeOf(lesion: Lesion): string | null {
  const { long_axis_mm, short_axis_mm } = lesion;
  if (long_axis_mm === null) return null;
  return `${long_axis_mm.toFixed(1)}${short_axis_mm === null ? '' : ` × ${short_axis_mm.toFixed(1)}`} mm`;
}
