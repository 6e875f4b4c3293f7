/** What is known of an image, in words: one place, so that pane, lists and headings say the same. */

import type { ImageRecord } from './api';
import type { Entry } from './entry';

export function plural(n: number, one: string): string {
  return `${n} ${one}${n === 1 ? '' : 's'}`;
}

/** In the corner of a pane. shown: lesions at or above the threshold. */
export function summaryOf(entry: Entry, shown: number): string {
  const { status } = entry.record;
  if (status !== 'processed') return `not analysed${status === 'pending' ? ' yet' : `: ${status}`}`;
  if (!entry.findings) return entry.problem ?? '…';
  const seen = entry.record.seen_in_training ? ' · seen in training' : '';
  const all = entry.findings.lesions.length;
  const lesions = all === 0 ? 'no lesion found' : countOf(shown, all);
  return `${lesions}${shown < all ? ' above threshold' : ''}${seen}`;
}

/** Over a pane: why its image was not analysed or cannot be shown; null where all is well. */
export function noticeOf({ record: { status, reason }, problem }: Entry): [heading: string, text: string] | null {
  if (status === 'rejected' || status === 'failed') return [`Not analysed: ${status}`, reason ?? problem ?? ''];
  if (problem === null && reason === null) return null;
  return [status === 'pending' && reason ? 'Not analysed yet' : 'This image cannot be shown', reason ?? problem ?? ''];
}

/** In the list of studies. shown: as above, null where the study is not open or its findings are not here yet. */
export function stateOf(image: ImageRecord, shown: number | null): string {
  if (image.status !== 'processed')
    return { rejected: 'rejected', failed: 'failed', pending: 'not analysed' }[image.status];
  if (image.lesions === null) return 'analysed';
  if (image.lesions === 0) return 'none found';
  return countOf(shown ?? image.lesions, image.lesions);
}

function countOf(shown: number, all: number): string {
  return shown === all ? plural(all, 'lesion') : `${shown} of ${plural(all, 'lesion')}`;
}
