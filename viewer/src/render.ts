/**
 * Drawing an image into its pane with Cornerstone3D: stored values in, the library does window, scale and position.
 *
 * The library's world is the native frame (pixel edges; one unit a native pixel), mirrored images with x' = width - x. Its two
 * ways of drawing place a pixel differently: WebGL by its centre, the CPU by its top-left corner; `originOf` allows for that.
 * On the CPU it draws one dot for each CSS pixel: style.css makes the element as many times larger as the screen is finer.
 * A level of halved size is an image of its own with larger pixels in the same world, shown when the view needs no finer one.
 */

import type { RenderingEngine, StackViewport, Types } from '@cornerstonejs/core';
import type { ImageRecord } from './api';
import type { Size, View } from './geometry';
import { mirrored, type Plane } from './pixels';
import { bounds, type Window } from './window';

const ENGINE = 'mammoseg';
const SCHEME = 'plane';

interface Shown {
  readonly plane: Plane;
  readonly image: ImageRecord;
  readonly size: Size;
  readonly mirrored: boolean;
}

const shown = new Map<string, Shown>();
let library: typeof import('@cornerstonejs/core');
let onCpu = false;

/** Starts the library. WebGL is used where hardware runs it; software WebGL is slower than drawing on the CPU. */
export async function startRendering(wanted: string | null): Promise<'webgl' | 'cpu'> {
  onCpu = wanted === 'webgl' ? false : wanted === 'cpu' || !hasFastWebGl();
  library = await import('@cornerstonejs/core'); // large: the rest of the viewer is at work while it loads
  library.setUseCPURendering(onCpu);
  await library.init();
  library.setUseCPURendering(onCpu);
  library.imageLoader.registerImageLoader(SCHEME, (id) => ({ promise: Promise.resolve(imageOf(id)) }) as never);
  library.metaData.addProvider(describe, 10000);
  new library.RenderingEngine(ENGINE);
  return onCpu ? 'cpu' : 'webgl';
}

const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

function hasFastWebGl(): boolean {
  const context = document.createElement('canvas').getContext('webgl2', { failIfMajorPerformanceCaveat: true });
  if (!context) return false;
  const names = context.getExtension('WEBGL_debug_renderer_info');
  const renderer = String(context.getParameter(names?.UNMASKED_RENDERER_WEBGL ?? context.RENDERER));
  context.getExtension('WEBGL_lose_context')?.loseContext();
  return !SOFTWARE.test(renderer);
}

function originOf({ plane, size, mirrored }: Shown): [number, number, number] {
  const step = 2 ** plane.level;
  const left = mirrored ? size.width - plane.width * step : 0;
  const half = onCpu ? 0 : step / 2;
  return [left + half, half, 0];
}

function imageOf(id: string): Types.IImage {
  const entry = shown.get(id);
  if (!entry) throw new Error(`no plane ${id}`);
  const plane = entry.mirrored ? mirrored(entry.plane) : entry.plane;
  const { values, width, height } = plane;
  const step = 2 ** plane.level;
  const { slope, intercept } = entry.image.rescale;
  return {
    imageId: id,
    minPixelValue: plane.lowest,
    maxPixelValue: plane.highest,
    slope,
    intercept,
    windowCenter: ((plane.lowest + plane.highest) / 2) * slope + intercept,
    windowWidth: Math.max(2, (plane.highest - plane.lowest) * Math.abs(slope)),
    voiLUTFunction: library.Enums.VOILUTFunctionType.LINEAR,
    getPixelData: () => values,
    getCanvas: undefined as never,
    rows: height,
    columns: width,
    height,
    width,
    color: false,
    rgba: false,
    numberOfComponents: 1,
    columnPixelSpacing: step,
    rowPixelSpacing: step,
    sliceThickness: 1,
    invert: false,
    photometricInterpretation: 'MONOCHROME2',
    sizeInBytes: values.byteLength,
    dataType: values instanceof Int16Array ? 'Int16Array' : 'Uint16Array',
    voxelManager: library.utilities.VoxelManager.createImageVoxelManager({
      width,
      height,
      scalarData: values,
      numberOfComponents: 1,
    }),
  } as Types.IImage;
}

function describe(type: string, id: string): object | undefined {
  const entry = shown.get(id);
  if (!entry) return undefined;
  const { plane, image } = entry;
  const step = 2 ** plane.level;
  switch (type) {
    case 'imagePlaneModule':
      return {
        rows: plane.height,
        columns: plane.width,
        imageOrientationPatient: [1, 0, 0, 0, 1, 0],
        rowCosines: [1, 0, 0],
        columnCosines: [0, 1, 0],
        imagePositionPatient: originOf(entry),
        rowPixelSpacing: step,
        columnPixelSpacing: step,
        pixelSpacing: [step, step],
        frameOfReferenceUID: image.image_id,
        usingDefaultValues: false,
      };
    case 'imagePixelModule':
      return {
        bitsAllocated: 16,
        bitsStored: 16,
        highBit: 15,
        pixelRepresentation: plane.values instanceof Int16Array ? 1 : 0,
        samplesPerPixel: 1,
        photometricInterpretation: 'MONOCHROME2',
      };
    case 'generalSeriesModule':
      return { modality: 'MG' };
    case 'modalityLutModule':
      return { rescaleSlope: image.rescale.slope, rescaleIntercept: image.rescale.intercept };
    default:
      return undefined;
  }
}

let count = 0;

/** One place on the screen where an image is drawn. `drawn` is called whenever the library has drawn. */
export class Renderer {
  private readonly name = `pane-${count++}`;
  private current: string | null = null;
  private coming: string | null = null;
  private fresh = false;

  constructor(
    private readonly element: HTMLDivElement,
    drawn: () => void,
  ) {
    engine().enableElement({ viewportId: this.name, element, type: library.Enums.ViewportType.STACK });
    element.addEventListener(library.Enums.Events.IMAGE_RENDERED, drawn);
  }

  /** Takes a plane to be drawn from now on; resolves when it can be, or when another one was asked for meanwhile. */
  async show(image: ImageRecord, size: Size, plane: Plane, isMirrored: boolean): Promise<void> {
    const id = `${SCHEME}:${image.image_id}/${plane.level}${isMirrored ? '/mirrored' : ''}`;
    if (id === this.coming && shown.has(id)) return;
    this.coming = id;
    shown.set(id, { plane, image, size, mirrored: isMirrored });
    await this.viewport.setStack([id], 0);
    if (this.coming !== id) return;
    this.current = id;
    this.fresh = true;
  }

  /** Whose values are drawn. */
  get imageId(): string | null {
    return this.current === null ? null : (shown.get(this.current)?.image.image_id ?? null);
  }

  /** Draws the image as `view` says, at the next frame, if a plane of it can be drawn already. */
  draw(imageId: string, view: View, window: Window, inverted: boolean): void {
    const entry = this.current === null ? undefined : shown.get(this.current);
    if (entry?.image.image_id !== imageId || this.element.clientWidth === 0) return;
    const viewport = this.viewport;
    const { lower, upper } = bounds(window);
    // A new plane comes with a window of its own, and the library takes one that equals the last for nothing new.
    if (this.fresh) viewport.setProperties({ voiRange: { lower, upper: upper + 1 } });
    this.fresh = false;
    viewport.setProperties({ voiRange: { lower, upper }, invert: inverted });
    const u = entry.mirrored ? entry.size.width - view.x : view.x;
    if (onCpu) {
      // The library mistakes where its centre is unless a CSS pixel is a device pixel, but it moves by what it is told.
      const step = 2 ** entry.plane.level;
      const [left, top] = originOf(entry);
      const [nowX, nowY] = viewport.getPan();
      const wantedX = entry.plane.width / 2 - (u - left) / step;
      const wantedY = entry.plane.height / 2 - (view.y - top) / step;
      const [x, y] = viewport.getCamera().focalPoint ?? [0, 0];
      const focalPoint = [x + (nowX - wantedX) * step, y + (nowY - wantedY) * step, 0];
      viewport.setCamera({ focalPoint, scale: view.scale * devicePixelRatio * step } as Types.ICamera);
    } else {
      const { position, focalPoint } = viewport.getCamera();
      viewport.setCamera({
        focalPoint: [u, view.y, focalPoint?.[2] ?? 0],
        position: [u, view.y, position?.[2] ?? -1],
        parallelScale: this.element.clientHeight / 2 / view.scale,
      });
    }
    viewport.render();
  }

  private get viewport(): StackViewport {
    return engine().getViewport(this.name) as StackViewport;
  }
}

function engine(): RenderingEngine {
  return library.getRenderingEngine(ENGINE) as RenderingEngine;
}

/** Takes on the new sizes of all places. */
export function resizeRenderers(): void {
  document.documentElement.style.setProperty('--ratio', onCpu ? String(devicePixelRatio) : '1');
  engine().resize(true, true);
}

/** Forgets every plane that has been shown, as another study comes. */
export function forgetPlanes(): void {
  shown.clear();
  library.cache.purgeCache();
}
