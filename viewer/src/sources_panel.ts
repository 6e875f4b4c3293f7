/** Adding images: by upload (button, or dropped anywhere), or from the DICOMweb servers the service may ask. */

import { post, type RemoteStudy, type Upload } from './api';
import { announce, byId, fill, h } from './dom';
import type { JobsPanel } from './jobs_panel';
import type { Model } from './model';

export class SourcesPanel {
  private readonly note = h('p', { class: 'quiet', role: 'status' });
  private readonly found = h('div', { class: 'remote' });

  constructor(
    private readonly model: Model,
    private readonly jobs: JobsPanel,
  ) {
    const files = h('input', { type: 'file', id: 'files', multiple: true, class: 'unseen' });
    files.addEventListener('change', () => {
      void this.upload([...(files.files ?? [])]);
      files.value = '';
    });
    byId('sources').append(
      h('h2', {}, 'Add images'),
      h('label', { for: 'files', class: 'button wide' }, files, 'Upload files …'),
      h('p', { class: 'quiet' }, 'or drop DICOM, PNG, TIFF, JPEG or PGM files anywhere.'),
      this.note,
      this.found,
    );
    this.listenForDrops();
  }

  /** Offers the DICOMweb servers, where the service has any. */
  offerServers(servers: readonly string[]): void {
    if (servers.length === 0) return;
    const server = h('select', { id: 'server' }, ...servers.map((url) => h('option', { value: url }, url)));
    const patient = h('input', { id: 'patient-id', type: 'text', autocomplete: 'off' });
    const form = h(
      'form',
      { class: 'search' },
      h('label', { for: 'server' }, 'DICOMweb server'),
      server,
      h('label', { for: 'patient-id' }, 'Patient ID'),
      patient,
      h('button', { type: 'submit', class: 'wide' }, 'Search'),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.search(server.value, patient.value);
    });
    byId('sources').append(form, this.found);
  }

  private async search(server: string, patient: string): Promise<void> {
    await this.attempt('Searching …', async () => {
      const query = { server, ...(patient ? { patient_id: patient } : {}) };
      const { studies } = await post<{ studies: RemoteStudy[] }>('dicomweb/search', query);
      fill(this.found, ...studies.map((study) => this.remote(server, study)));
      return `${studies.length} ${studies.length === 1 ? 'study' : 'studies'} there.`;
    });
  }

  private remote(server: string, study: RemoteStudy): HTMLElement {
    const { patient_name, patient_id, study_date, description } = study;
    const words = [study_date, description, patient_name, patient_id].filter((word) => word !== '').join(' · ');
    return h(
      'button',
      { type: 'button', class: 'study', onclick: () => void this.take(server, study.study_instance_uid) },
      words || study.study_instance_uid,
    );
  }

  private async take(server: string, study: string): Promise<void> {
    await this.attempt('Asking for the study …', async () => {
      await post('dicomweb/import', { study_instance_uid: study, server });
      await this.jobs.watch();
      return 'On its way.';
    });
  }

  async upload(files: File[]): Promise<void> {
    if (files.length === 0) return;
    await this.attempt(`Uploading ${files.length} ${files.length === 1 ? 'file' : 'files'} …`, async () => {
      const form = new FormData();
      for (const file of files) form.append('files', file, file.name);
      const answer = await post<Upload>('uploads', form);
      await this.model.refresh();
      const id = answer.images.find((image) => this.model.images.has(image));
      const study = this.model.studies.find(({ images }) => id !== undefined && images.includes(id));
      if (study) await this.model.open(study.study_id);
      await this.jobs.watch();
      const refused = answer.refused.map(({ name, reason }) => ` ${name}: ${reason}.`).join('');
      return `${answer.images.length} of ${files.length} taken.${refused}`;
    });
  }

  private async attempt(before: string, work: () => Promise<string>): Promise<void> {
    this.note.classList.remove('unusable');
    this.note.textContent = before;
    try {
      this.note.textContent = await work();
      announce(this.note.textContent);
    } catch (error) {
      this.note.classList.add('unusable');
      this.note.textContent = (error as Error).message;
    }
  }

  private listenForDrops(): void {
    const sheet = byId('drop');
    const isFiles = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false;
    addEventListener('dragover', (event) => {
      if (!isFiles(event)) return;
      event.preventDefault();
      sheet.hidden = false;
    });
    addEventListener('dragleave', (event) => {
      if (event.relatedTarget === null) sheet.hidden = true;
    });
    addEventListener('drop', (event) => {
      if (!isFiles(event)) return;
      event.preventDefault();
      sheet.hidden = true;
      void this.upload([...(event.dataTransfer?.files ?? [])]);
    });
  }
}
