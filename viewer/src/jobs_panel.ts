/** Analyses: starting them, and how far they are. */

import { get, type Job, post } from './api';
import { announce, byId, fill, h } from './dom';
import type { Model } from './model';

const ASK_EVERY_MS = 1000;

export class JobsPanel {
  private jobs: Job[] = [];
  private timer = 0;
  private note = '';

  constructor(private readonly model: Model) {
    model.listen((change) => {
      if (change === 'studies' || change === 'study') this.update();
    });
  }

  /** Looks how far the jobs are, again and again while one is at work; reads findings as they come. */
  async watch(): Promise<void> {
    window.clearTimeout(this.timer);
    const before = new Map(this.jobs.map((job) => [job.job_id, job]));
    try {
      this.jobs = await get<Job[]>('jobs');
    } catch (error) {
      this.say((error as Error).message);
    }
    const moved = this.jobs.some((job) => {
      const old = before.get(job.job_id);
      return old !== undefined && (old.done !== job.done || old.state !== job.state);
    });
    if (moved) await this.model.refresh().catch((error: Error) => this.say(error.message));
    for (const job of this.jobs)
      if (moved && job.state === 'done' && isBusy(before.get(job.job_id))) announce('Analysis done');
    this.update();
    if (this.jobs.some(isBusy)) this.timer = window.setTimeout(() => void this.watch(), ASK_EVERY_MS);
  }

  say(text: string): void {
    this.note = text;
    this.update();
  }

  private async start(images: string[]): Promise<void> {
    try {
      await post('jobs', { images, settings: {} });
      this.say('');
    } catch (error) {
      this.say((error as Error).message);
    }
    await this.watch();
  }

  private async cancel(job: Job): Promise<void> {
    await post(`jobs/${job.job_id}/cancel`, {}).catch((error: Error) => this.say(error.message));
    await this.watch();
  }

  private update(): void {
    const busy = this.jobs.some(isBusy);
    const waiting = this.model.entries
      .filter(({ record }) => record.status === 'pending')
      .map(({ record }) => record.image_id);
    const last = this.jobs
      .filter((job) => isBusy(job) || job.failures.length > 0 || job.state === 'failed')
      .slice(0, 3);
    const start = h(
      'button',
      { type: 'button', 'data-key': 'start', class: 'wide', onclick: () => void this.start(waiting) },
      `Analyse ${waiting.length} waiting ${waiting.length === 1 ? 'image' : 'images'}`,
    );
    fill(
      byId('jobs'),
      last.length > 0 || waiting.length > 0 || this.note ? h('h2', {}, 'Analyses') : null,
      waiting.length > 0 && !busy ? start : null,
      this.note ? h('p', { class: 'unusable' }, this.note) : null,
      ...last.map((job) => this.job(job)),
    );
  }

  private job(job: Job): HTMLElement {
    const left = job.seconds_left === null ? '' : `, about ${Math.ceil(job.seconds_left)} s left`;
    const words = isBusy(job)
      ? `${job.state}: ${job.done} of ${job.total}${left}`
      : `${job.state}: ${job.done} of ${job.total}`;
    const failures = job.failures.map(({ image_id, reason }) => {
      const image = this.model.images.get(image_id);
      return h('li', { class: 'unusable' }, `${image?.name ?? 'An image'}: ${reason}`);
    });
    return h(
      'div',
      { class: 'job' },
      h('progress', { value: job.done, max: Math.max(job.total, 1), 'aria-label': 'Analysis' }),
      h('span', {}, words),
      isBusy(job)
        ? h('button', { type: 'button', 'data-key': job.job_id, onclick: () => void this.cancel(job) }, 'Cancel')
        : null,
      job.error ? h('p', { class: 'unusable' }, job.error) : null,
      failures.length > 0 ? h('ul', {}, ...failures) : null,
    );
  }
}

function isBusy(job: Job | undefined): boolean {
  return job?.state === 'queued' || job?.state === 'running';
}
