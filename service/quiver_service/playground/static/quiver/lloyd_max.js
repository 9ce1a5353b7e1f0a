/**
 * Lloyd-Max levels of the normal distribution: the best for nearest rounding. A fixed function of
 * their number, so they do not travel; rounded to float32 they are the same anywhere.
 */

const STEPS = 200;
const CLOSE = 1e-12;

/** The complementary error function, to a few units of the last place. @param {number} z From 0 on. */
export function erfc(z) {
  if (z === Infinity) return 0;
  const front = (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z);
  if (z < 1.5) {
    let sum = z, term = z;
    for (let n = 1; term > 1e-18 * sum; n++) sum += term *= (2 * z * z) / (2 * n + 1);
    return 1 - front * sum;
  }
  // A continued fraction, from its far end.
  let rest = z;
  for (let n = 200; n > 0; n--) rest = z + n / 2 / rest;
  return front / 2 / rest;
}

const density = (x) => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);

/** Where the normal distribution of variance 3 has `share` of its mass on either side of 0. */
function begin(share) {
  let low = 0, high = 20;
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2;
    if (1 - erfc(middle / Math.sqrt(6)) < share) low = middle;
    else high = middle;
  }
  return low;
}

/** Levels less the means of their cells, and the derivatives by the level below, itself and above. */
function equations(half, odd) {
  const ends = half.map((level, i) => (i === 0 ? 0 : (level + half[i - 1]) / 2));
  const cells = half.map((level, i) => {
    const low = ends[i], high = ends[i + 1] ?? Infinity;
    const mass = 0.5 * (erfc(low / Math.SQRT2) - erfc(high / Math.SQRT2));
    return { low, high, mass, mean: (density(low) - density(high)) / mass };
  });
  return cells.map(({ low, high, mass, mean }, i) => {
    if (odd && i === 0) return { residual: half[0], below: 0, middle: 1, above: 0 };
    const above = high === Infinity ? 0 : (-0.5 * density(high) * (high - mean)) / mass;
    const below = i === 0 ? 0 : (-0.5 * density(low) * (mean - low)) / mass;
    return { residual: half[i] - mean, below, middle: 1 + above + below, above };
  });
}

const worst = (rows) => Math.max(...rows.map((row) => Math.abs(row.residual)));

/** Newton's step: three diagonals, eliminated from the top. */
function solved(rows) {
  const middle = rows.map((row) => row.middle), right = rows.map((row) => row.residual);
  for (let i = 1; i < rows.length; i++) {
    const share = rows[i].below / middle[i - 1];
    middle[i] -= share * rows[i - 1].above;
    right[i] -= share * right[i - 1];
  }
  for (let i = rows.length - 1; i >= 0; i--) {
    const ahead = i + 1 < rows.length ? rows[i].above * right[i + 1] : 0;
    right[i] = (right[i] - ahead) / middle[i];
  }
  return right;
}

/**
 * The levels, ascending, float32 numbers.
 * @param {number} count 2..256
 * @returns {Float64Array}
 */
export function normalLevels(count) {
  const odd = count % 2 === 1;
  let half = [];
  for (let i = Math.floor(count / 2); i < count; i++) half.push(begin((2 * i + 1) / count - 1));
  if (odd) half[0] = 0;
  let rows = equations(half, odd);
  for (let step = 0; step < STEPS && worst(rows) >= CLOSE; step++) {
    const move = solved(rows);
    let found = null;
    for (const share of [1, 0.5, 0.25, 0.125]) {
      const moved = half.map((level, i) => level - share * move[i]);
      if (!moved.every((level, i) => (i === 0 ? odd || level > 0 : level > moved[i - 1]))) continue;
      const next = equations(moved, odd);
      if (worst(next) < worst(rows)) {
        found = [moved, next];
        break;
      }
    }
    if (found === null) {
      // Lloyd's step: every level to the mean of its cell.
      const moved = half.map((level, i) => level - rows[i].residual);
      found = [moved, equations(moved, odd)];
    }
    [half, rows] = found;
  }
  const upper = half.map(Math.fround);
  const lower = upper.slice(odd ? 1 : 0).map((level) => -level).reverse();
  return Float64Array.from([...lower, ...upper]);
}
