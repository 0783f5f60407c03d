// Builds one object per token, with everything recorded about it, from the embedded data.

const DATA = { runs: [], live: false, differing: [] };

function load(tree) {
  DATA.live = tree.live;
  DATA.differing = tree.differing;
  DATA.runs = tree.runs.map((run, index) => {
    const wrapped = { ...run, index, rollouts: run.rollouts.map((r) => ({ ...r, run: index })) };
    for (const rollout of wrapped.rollouts) prepare(rollout, wrapped);
    wrapped.steps = [...new Set(wrapped.rollouts.map((r) => r.step))];
    wrapped.scales = {};
    return wrapped;
  });
}

// rollout.tokens: one object per token of the completion.
function prepare(rollout, run) {
  rollout.key = `${rollout.step} ${rollout.of} ${rollout.n}`;
  const special = new Set(rollout.special);
  const missed = new Set(rollout.missed);
  const turns = rollout.turns;
  rollout.tokens = rollout.text.map((text, position) => ({
    rollout, position, text, id: rollout.ids[position], own: false, special: special.has(position), terms: [],
    bytes: rollout.bytes[position] || null, partial: text === "" && position in rollout.bytes,
    missed: missed.has(position), outside: !turns.some(([start, stop]) => start <= position && position < stop),
  }));
  const student = rollout.student;
  rollout.own.forEach((position, k) => {
    const token = rollout.tokens[position];
    token.own = true;
    token.k = k;
    token.drawn = rollout.drawn[k] ?? null;
    token.student = { name: "student", logprob: student.logprob[k], entropy: student.entropy[k], top: top(student, k, run) };
    token.before = student.before ? student.before[k] : rollout.step === 0 ? student.logprob[k] : null;
    token.after = rollout.after ? rollout.after[k] : null;
    token.again = (rollout.again || []).map(([step, logprob]) => [step, logprob[k]]);
  });
  for (const term of rollout.terms) {
    term.position.forEach((position, row) => {
      const teachers = [];
      for (const teacher of term.teachers) {
        const at = teacher.row ? teacher.row.indexOf(row) : row;
        if (at < 0) continue;
        const entropy = teacher.entropy ? teacher.entropy[at] : null;
        const name = teacher.name || (term.role === "anchor" ? "initial weights" : "teacher");
        teachers.push({ name, logprob: teacher.logprob[at], entropy, top: top(teacher, at, run) });
      }
      rollout.tokens[position].terms.push({
        name: term.name,
        role: term.role,
        label: run.labels[term.name] || "loss",
        factor: term.factor,
        count: term.count,
        weight: term.weight[row],
        loss: term.loss[row],
        advantage: term.advantage ? term.advantage[row] : null,
        teachers,
      });
    });
  }
  rollout.scored = rollout.terms.length > 0; // false: no term of the loss scored this rollout
  for (const [kind, start, stop] of rollout.parts) if (kind === "frame") for (let p = start; p < stop; p += 1) rollout.tokens[p].frame = true;
  for (const token of rollout.tokens) {
    token.masked = rollout.scored && token.own && !token.terms.length;
    token.stranger = token.outside && token.own && !token.masked; // inserted, but in the loss
    token.generated = token.missed || (token.own && !token.outside); // by the student, even if the mask is wrong
  }
  const values = rollout.tokens.map(QUANTITIES.divergence.of).filter((v) => v !== null);
  rollout.worst = values.length ? Math.max(...values) : 0;
  rollout.mean = values.length ? values.reduce((a, b) => a + b, 0) / values.length : 0;
  rollout.plain = rollout.text.join("");
}

function top(scores, row, run) {
  if (!scores.top) return null;
  const pairs = scores.top[row];
  const found = [];
  for (let i = 0; i < pairs.length; i += 2) found.push({ text: run.vocabulary[pairs[i]], logprob: pairs[i + 1] });
  return found;
}

const lead = (token) => token.terms[0] || null;
const teacherOf = (token) => (lead(token) && lead(token).teachers[0]) || null;

// Quantities that can colour tokens. A diverging one has a sign; the others start at 0.
const QUANTITIES = {
  divergence: {
    name: "Divergence", key: "1",
    about: "the loss at this token, in nats",
    of: (t) => (lead(t) ? lead(t).loss : null),
  },
  advantage: {
    name: "Advantage", key: "2", diverging: true, signs: ["discouraged", "encouraged"],
    about: "advantage of the sampled token: the teacher's log-probability minus that of the rollout",
    of: (t) => {
      if (lead(t) && lead(t).advantage !== null) return lead(t).advantage;
      return teacherOf(t) && t.drawn !== null ? teacherOf(t).logprob - t.drawn : null;
    },
  },
  gap: {
    name: "Gap", key: "3", diverging: true, signs: ["less likely for the teacher", "more likely for the teacher"],
    about: "the teacher's minus the student's log-probability of the token",
    of: (t) => (teacherOf(t) ? teacherOf(t).logprob - t.student.logprob : null),
  },
  student: {
    name: "Student", key: "4", surprise: true,
    about: "surprisal of the token for the student, −log p",
    of: (t) => (t.own ? -t.student.logprob : null),
  },
  teacher: {
    name: "Teacher", key: "5", surprise: true,
    about: "surprisal of the token for the teacher, −log q",
    of: (t) => (teacherOf(t) ? -teacherOf(t).logprob : null),
  },
  entropy: {
    name: "Entropy", key: "6",
    about: "entropy of the student's distribution, in nats",
    of: (t) => (t.own ? t.student.entropy : null),
  },
  weight: {
    name: "Weight", key: "7",
    about: "weight of the position in the loss; 1 by default",
    of: (t) => (t.own ? t.terms.reduce((sum, term) => sum + term.factor * term.weight, 0) : null),
  },
  change: {
    name: "Trained", key: "8", diverging: true, signs: ["unlearned", "learned"],
    about: "change of the token's probability by training",
    of: (t) => (t.own && t.before !== null && t.after !== null ? Math.exp(t.after) - Math.exp(t.before) : null),
    fixed: 1,
  },
};

// The value with the full colour: the 99.5th percentile of the whole run, so that colours are comparable.
function scale(run, name) {
  const quantity = QUANTITIES[name];
  if (quantity.fixed) return quantity.fixed;
  if (!(name in run.scales)) {
    const values = [];
    for (const rollout of run.rollouts) {
      for (const token of rollout.tokens) {
        const value = quantity.of(token);
        if (value !== null) values.push(Math.abs(value));
      }
    }
    values.sort((a, b) => a - b);
    const high = values.length ? values[Math.floor(0.995 * (values.length - 1))] : 1;
    run.scales[name] = Math.max(high, quantity.surprise || quantity.diverging ? 1 : 0.05);
  }
  return run.scales[name];
}

// Strength of a colour, 0 to 1; the square root makes small values visible.
const strength = (value, most) => Math.sqrt(Math.min(Math.abs(value) / most, 1));
