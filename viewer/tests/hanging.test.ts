import { describe, expect, it } from 'vitest';
import { chestWallOf, chestWallSide, hang, inOrder, namesOf } from '../src/hanging';

const image = (name: string, id = name) => ({
  image_id: id,
  laterality: name[0] === '?' ? null : (name[0] ?? null),
  view_position: name.slice(1) || null,
});
const ids = (pages: ReturnType<typeof hang>) =>
  pages.map((page) => page.map((place) => place?.image_id ?? '-').join(' '));

describe('the hanging protocol', () => {
  it('is RCC LCC above RMLO LMLO, in whatever order the images come', () => {
    const orders = [
      ['LCC', 'LMLO', 'RCC', 'RMLO'],
      ['RMLO', 'RCC', 'LMLO', 'LCC'],
    ];
    for (const order of orders) expect(ids(hang(order.map((name) => image(name))))).toEqual(['RCC LCC RMLO LMLO']);
  });

  it('leaves the place of a missing view empty', () => {
    expect(ids(hang([image('LMLO'), image('RCC')]))).toEqual(['RCC - - LMLO']);
  });

  it('shows every image once: repeats, other views and unknown ones on later screens', () => {
    const many = ['RCC', 'LCC', 'RMLO', 'LMLO', 'RCC', 'LXCCL', '?', '?', '?'].map((name, k) => image(name, `${k}`));
    const pages = hang(many);
    expect(ids(pages)).toEqual(['0 1 2 3', '4 5 6 7', '8 - - -']);
    expect(inOrder(many).map(({ image_id }) => image_id)).toEqual(['0', '1', '2', '3', '4', '5', '6', '7', '8']);
  });

  it('names images by their view, by number where there are several, else by their file', () => {
    const named = ['RCC', 'LCC', 'RCC', '?'].map((name, k) => ({ ...image(name), name: `a/b/${k}.dcm` }));
    expect(namesOf(named)).toEqual(['RCC', 'LCC', 'RCC 2', '3.dcm']);
  });

  it('has no empty screen before images without a view', () => {
    expect(ids(hang([image('?', 'a'), image('?', 'b')]))).toEqual(['a b - -']);
    expect(hang([])).toEqual([]);
  });

  it('puts chest walls in the middle: right breasts to the right of their place, left ones to the left', () => {
    expect(chestWallSide(image('RCC'))).toBe('right');
    expect(chestWallSide(image('LMLO'))).toBe('left');
    expect(chestWallSide(image('?'))).toBeNull();
  });
});

describe('the chest wall', () => {
  const [width, height] = [200, 250];
  /** A half disc of tissue at one side, with a bright label at the other. */
  const breast = (side: 'left' | 'right', inverted: boolean) => {
    const values = new Uint16Array(width * height);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const x = side === 'left' ? column : width - 1 - column;
        const tissue = x ** 2 + (row - height / 2) ** 2 < 100 ** 2;
        const label = x > 190 && row < 12;
        const value = label ? 4000 : tissue ? 1500 : 20;
        values[row * width + column] = inverted ? 4095 - value : value;
      }
    }
    return values;
  };

  it.each([false, true])('is where the tissue reaches the edge (inverted: %s)', (inverted) => {
    expect(chestWallOf(breast('left', inverted), width, inverted)).toBe('left');
    expect(chestWallOf(breast('right', inverted), width, inverted)).toBe('right');
  });

  it('is unknown where nothing, or everything, reaches both edges', () => {
    expect(chestWallOf(new Uint16Array(width * height), width, false)).toBeNull();
    const noise = Uint16Array.from({ length: width * height }, (_, i) => (i * 7919) % 4096);
    expect(chestWallOf(noise, width, false)).toBeNull();
  });
});
