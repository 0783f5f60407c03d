// From the embedded data to tokens with everything that is known about them.

const DATA = { runs: [], live: false };

function load(tree) {
  DATA.live = tree.live;
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
    missed: missed.has(position), outside: !turns.some(([start, stop]) => start <= position && position < stop),
  }));
  const said = rollout.student;
  rollout.own.forEach((position, k) => {
    const token = rollout.tokens[position];
    token.own = true;
    token.k = k;
    token.drawn = rollout.drawn[k] ?? null;
    token.student = { name: "student", logprob: said.logprob[k], entropy: said.entropy[k], top: top(said, k, run) };
    token.before = said.before ? said.before[k] : rollout.step === 0 ? said.logprob[k] : null;
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
  rollout.scored = rollout.terms.length > 0; // else nobody was asked about it
  for (const token of rollout.tokens) {
    token.masked = rollout.scored && token.own && !token.terms.length;
    token.stranger = token.outside && token.own && !token.masked; // trained on, and nobody's choice
    token.said = token.missed || (token.own && !token.outside); // what the student wrote, whatever the mask says
  }
  const values = rollout.tokens.map(METRICS.divergence.of).filter((v) => v !== null);
  rollout.worst = values.length ? Math.max(...values) : 0;
  rollout.mean = values.length ? values.reduce((a, b) => a + b, 0) / values.length : 0;
  rollout.plain = rollout.text.join("");
}

function top(said, row, run) {
  if (!said.top) return null;
  const pairs = said.top[row];
  const found = [];
  for (let i = 0; i < pairs.length; i += 2) found.push({ text: run.vocabulary[pairs[i]], logprob: pairs[i + 1] });
  return found;
}

const lead = (token) => token.terms[0] || null;
const teacherOf = (token) => (lead(token) && lead(token).teachers[0]) || null;

// What tokens can be coloured by. A diverging one has a sign; the others grow from nothing.
const METRICS = {
  divergence: {
    name: "Divergence", key: "1",
    about: "the loss's own distance between student and teacher at this token, in nats",
    of: (t) => (lead(t) ? lead(t).loss : null),
  },
  advantage: {
    name: "Advantage", key: "2", diverging: true, signs: ["discouraged", "encouraged"],
    about: "what the loss gives the sampled token: the teacher's log-probability less that under which it was drawn",
    of: (t) => {
      if (lead(t) && lead(t).advantage !== null) return lead(t).advantage;
      return teacherOf(t) && t.drawn !== null ? teacherOf(t).logprob - t.drawn : null;
    },
  },
  gap: {
    name: "Gap", key: "3", diverging: true, signs: ["teacher likes it less", "teacher likes it more"],
    about: "teacher's less student's log-probability of the token",
    of: (t) => (teacherOf(t) ? teacherOf(t).logprob - t.student.logprob : null),
  },
  student: {
    name: "Student", key: "4", surprise: true,
    about: "how unlikely the student finds its token, −log p",
    of: (t) => (t.own ? -t.student.logprob : null),
  },
  teacher: {
    name: "Teacher", key: "5", surprise: true,
    about: "how unlikely the teacher finds the student's token, −log q",
    of: (t) => (teacherOf(t) ? -teacherOf(t).logprob : null),
  },
  entropy: {
    name: "Entropy", key: "6",
    about: "how unsure the student is, in nats",
    of: (t) => (t.own ? t.student.entropy : null),
  },
  weight: {
    name: "Weight", key: "7",
    about: "how much the position counts in the loss, 1 for an ordinary one",
    of: (t) => (t.own ? t.terms.reduce((sum, term) => sum + term.factor * term.weight, 0) : null),
  },
  change: {
    name: "Trained", key: "8", diverging: true, signs: ["unlearned", "learned"],
    about: "how much more likely the token has become by training, in points of probability",
    of: (t) => (t.own && t.before !== null && t.after !== null ? Math.exp(t.after) - Math.exp(t.before) : null),
    fixed: 1,
  },
};

// The value that gets the full colour: nearly the largest of the whole run, so that colours mean the same everywhere.
function scale(run, name) {
  const metric = METRICS[name];
  if (metric.fixed) return metric.fixed;
  if (!(name in run.scales)) {
    const values = [];
    for (const rollout of run.rollouts) {
      for (const token of rollout.tokens) {
        const value = metric.of(token);
        if (value !== null) values.push(Math.abs(value));
      }
    }
    values.sort((a, b) => a - b);
    const high = values.length ? values[Math.floor(0.995 * (values.length - 1))] : 1;
    run.scales[name] = Math.max(high, metric.surprise || metric.diverging ? 1 : 0.05);
  }
  return run.scales[name];
}

// How strong the colour is, 0 to 1; the square root brings out small values.
const strength = (value, most) => Math.sqrt(Math.min(Math.abs(value) / most, 1));
