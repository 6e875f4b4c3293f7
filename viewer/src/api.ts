/** The service's answers, and how to ask for them. Addresses are relative: the viewer lies at the service's root. */

import type { Box, Point } from './geometry';

export type Status = 'processed' | 'rejected' | 'failed' | 'pending';

export interface Info {
  version: string;
  notice: string;
  bundle: { name: string; sha256: string } | null;
  operating: { min_score: number; fusion: string; lambda: number } | null;
  formats: string[];
  dicomweb: string[];
}

export interface Study {
  study_id: string;
  label: string;
  images: string[];
  formats: string[];
}

export interface ImageRecord {
  image_id: string;
  study_id: string;
  name: string;
  laterality: string | null;
  view_position: string | null;
  height: number | null;
  width: number | null;
  spacing_mm: [row: number, column: number] | null;
  bits_stored: number | null;
  signed: boolean;
  photometric_interpretation: string;
  window: { center: number; width: number } | null;
  rescale: { slope: number; intercept: number };
  status: Status;
  reason: string | null;
  lesions: number | null;
  seen_in_training: boolean | null;
  has_pixels: boolean;
  has_truth: boolean;
  has_layers: boolean;
  formats: string[];
}

export interface Lesion {
  id: number;
  score: number;
  box_xyxy: Box;
  contour_xy: Point[];
  area_px: number;
  area_mm2: number | null;
  long_axis_mm: number | null;
  short_axis_mm: number | null;
  outline?: string;
}

export interface Candidate {
  box_xyxy: Box;
  score: number;
}

export interface Findings {
  status: Status;
  reason: string | null;
  lesions: Lesion[];
  candidates: Candidate[];
}

/** What lies behind the lesions. fusion_mask: values[j][i] between x_edges i, i + 1 and y_edges j, j + 1; null unless MSF. */
export interface Layers {
  lambda: number;
  fusion: string;
  score_min: number;
  scales: { size: [height: number, width: number]; detections: Candidate[] }[];
  fusion_mask: { x_edges: number[]; y_edges: number[]; values: number[][] } | null;
}

export interface Truth {
  lesions: { box_xyxy: Box; contours_xy: Point[][] }[];
}

export interface Job {
  job_id: string;
  state: 'queued' | 'running' | 'done' | 'failed' | 'cancelled';
  done: number;
  total: number;
  seconds_left: number | null;
  failures: { image_id: string; status: string; reason: string }[];
  error: string | null;
}

export interface Upload {
  job_id: string;
  images: string[];
  refused: { name: string; reason: string }[];
}

/** A study at a DICOMweb server. */
export interface RemoteStudy {
  study_instance_uid: string;
  patient_name: string;
  patient_id: string;
  study_date: string;
  description: string;
}

/** An answer that is no success. message: a sentence for people. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const ROOT = 'api/v1';

export async function get<T>(path: string): Promise<T> {
  return (await ask(path)).json() as Promise<T>;
}

export async function post<T>(path: string, body: object | FormData): Promise<T> {
  const form = body instanceof FormData;
  const headers: Record<string, string> = form ? {} : { 'Content-Type': 'application/json' };
  const answer = await ask(path, { method: 'POST', headers, body: form ? body : JSON.stringify(body) });
  return answer.json() as Promise<T>;
}

export function resultAddress(kind: 'images' | 'studies', id: string, format: string): string {
  return `${ROOT}/${kind}/${id}/results/${format}`;
}

export async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(`${ROOT}/${path}`, options);
  } catch {
    throw new ApiError(0, 'the service does not answer; is `mammoseg serve` still running?');
  }
  if (answer.ok) return answer;
  throw new ApiError(answer.status, await messageOf(answer));
}

async function messageOf(answer: Response): Promise<string> {
  try {
    const body = (await answer.json()) as { error?: { message?: string } };
    return body.error?.message ?? `the service answered with status ${answer.status}`;
  } catch {
    return `the service answered with status ${answer.status}`;
  }
}
