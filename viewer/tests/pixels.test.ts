import { afterEach, describe, expect, it, vi } from 'vitest';
import type { ImageRecord } from '../src/api';
import { coarsestLevel, mirrored, PixelStore } from '../src/pixels';

const record = { image_id: 'a1', has_pixels: true } as ImageRecord;

/** A service that sends `values` as level 0. */
function serve(values: Int16Array | Uint16Array, width: number, headers: Record<string, string> = {}) {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return vi.fn(
    async () =>
      new Response(bytes.slice(), {
        headers: {
          'X-Width': String(width),
          'X-Height': String(values.length / width),
          'X-Signed': values instanceof Int16Array ? '1' : '0',
          ...headers,
        },
      }),
  );
}

afterEach(() => vi.unstubAllGlobals());

describe('stored values', () => {
  it.each([
    ['16 bits', Uint16Array.of(0, 1, 255, 256, 4095, 65535)],
    ['signed ones', Int16Array.of(-32768, -1, 0, 1, 2047, 32767)],
  ])('arrive unchanged: %s', async (_, values) => {
    vi.stubGlobal('fetch', serve(values, 3));
    const store = new PixelStore();
    expect(store.value(record, 0, 0)).toBeNull();
    const plane = await store.plane(record, 0);
    expect([...plane.values]).toEqual([...values]);
    expect([plane.lowest, plane.highest]).toEqual([Math.min(...values), Math.max(...values)]);
    expect([0, 1].flatMap((row) => [0, 1, 2].map((column) => store.value(record, column, row)))).toEqual([...values]);
  });

  it('are not asked for where the file of the image is not at the service', async () => {
    const fetching = serve(Uint16Array.of(1, 2), 2);
    vi.stubGlobal('fetch', fetching);
    const findingsAlone = { ...record, has_pixels: false };
    await expect(new PixelStore().plane(findingsAlone, 0)).rejects.toThrow('mammoseg serve IMAGES RESULTS');
    expect(fetching).not.toHaveBeenCalled();
  });

  it('are fetched once', async () => {
    const fetching = serve(Uint16Array.of(1, 2), 2);
    vi.stubGlobal('fetch', fetching);
    const store = new PixelStore();
    await Promise.all([store.plane(record, 0), store.plane(record, 0)]);
    expect(fetching).toHaveBeenCalledTimes(1);
  });

  it('that are cut short are refused, and asked for again', async () => {
    vi.stubGlobal('fetch', serve(Uint16Array.of(1, 2), 2, { 'X-Height': '2' }));
    const store = new PixelStore();
    await expect(store.plane(record, 0)).rejects.toThrow('expected 2 x 2 values of 16 bits, got 4 bytes');
    vi.stubGlobal('fetch', serve(Uint16Array.of(1, 2), 2));
    await expect(store.plane(record, 0)).resolves.toMatchObject({ width: 2 });
  });

  it('of a finer level are drawn rather than those of a coarser one', async () => {
    const store = new PixelStore();
    vi.stubGlobal('fetch', serve(Uint16Array.of(1, 2, 3, 4), 2));
    for (const level of [0, 2, 4]) await store.plane(record, level);
    expect([0, 1, 2, 3, 4, 5].map((level) => store.best(record, level)?.level)).toEqual([0, 0, 2, 2, 4, 4]);
  });
});

describe('levels', () => {
  it('are mirrored row by row, the first one untouched', () => {
    const plane = {
      level: 0,
      width: 3,
      height: 2,
      values: Uint16Array.of(1, 2, 3, 4, 5, 6),
      lowest: 1,
      highest: 6,
      window: null,
    };
    expect([...mirrored(plane).values]).toEqual([3, 2, 1, 6, 5, 4]);
    expect([...plane.values]).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it('end at about 200 pixels', () => {
    expect(coarsestLevel({ width: 3328, height: 4084 })).toBe(4);
    expect(coarsestLevel({ width: 100, height: 150 })).toBe(0);
  });
});
