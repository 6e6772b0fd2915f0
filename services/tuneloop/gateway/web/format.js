// Numbers and times as people read them.

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const whole = new Intl.NumberFormat("en");

const STEPS = [
  ["second", 60],
  ["minute", 60],
  ["hour", 24],
  ["day", 30],
  ["month", 12],
];

export function ago(time) {
  if (!time) return "";
  let amount = (Date.parse(time) - Date.now()) / 1000;
  if (Math.abs(amount) < 10) return "just now";
  for (const [unit, size] of STEPS) {
    if (Math.abs(amount) < size) return relative.format(Math.round(amount), unit);
    amount /= size;
  }
  return relative.format(Math.round(amount), "year");
}

export const moment = (time) => (time ? new Date(time).toLocaleString() : "");
export const count = (number) => whole.format(number);
export const percent = (share) => `${Math.round(share * 100)}%`;

/** Three figures that mean something, whatever the size. */
export function figure(number) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  if (Math.abs(number) >= 1000) return whole.format(Math.round(number));
  return String(Number(number.toPrecision(3)));
}

export const plural = (number, one, many = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : many}`;
