"""Templates of the page of `fedsvd watch`, beside those of the report."""

from __future__ import annotations

from types import MappingProxyType

_STYLE = """\
{% include "style.css" %}
  :root { --blue: #0072b2; --vermilion: #d55e00; --green: #009e73; --line: #d8dde2; }
  body { background: #f6f7f9; max-width: 66rem; }
  h1 { font-size: 1.4rem; margin: 0; }
  h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
  table, .warning { background: #fff; }
  caption { background: #f6f7f9; }
  th, td { padding: .3rem .8rem; }
  .warning { padding: .3rem .75rem; }
  .subject { margin: .2rem 0 1.2rem; color: #444; max-width: none; }
  .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .8rem; }
  .tile { display: flex; flex-direction: column; gap: .15rem; background: #fff; border: 1px solid var(--line);
    border-top-width: 3px; border-radius: 8px; padding: .8rem 1rem; }
  .tile .label { color: #555; font-size: .85rem; }
  .tile .value { font-size: 1.7rem; line-height: 1.2; font-weight: 600; font-variant-numeric: tabular-nums; }
  .state-running { border-top-color: var(--blue); }
  .state-finished { border-top-color: var(--green); }
  .state-failed, .state-interrupted { border-top-color: var(--vermilion); }
  .bar { display: block; height: 6px; margin: .25rem 0; border-radius: 3px; background: #e6e9ed; overflow: hidden; }
  .bar > span { display: block; height: 100%; border-radius: 3px; background: var(--blue); }
  .clients { width: 100%; }
  .clients th, .client { white-space: nowrap; }
  .budget { width: 6rem; padding: .55rem .8rem 0 0; }
  .dot { display: inline-block; box-sizing: border-box; width: .7em; height: .7em; margin-right: .5em;
    border: 2px solid #777; border-radius: 50%; }
  .kind-0 { background: var(--blue); border-color: var(--blue); animation: pulse 1.6s ease-in-out infinite; }
  .kind-1 { background: var(--green); border-color: var(--green); }
  .kind-2 { border-color: var(--green); }
  .kind-3 { background: var(--vermilion); border-color: var(--vermilion); border-radius: 0; }
  @keyframes pulse { 50% { opacity: .35; } }
  @media (prefers-reduced-motion: reduce) { .kind-0 { animation: none; } }
  figure { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 1rem; max-width: 46rem; }
"""

_LIVE = """\
<p class="subject">{{ subject or "waiting for the first round" }}</p>
{% if problem %}
<p class="warning">{{ problem }}</p>
{% endif %}
<div class="tiles">
<div class="tile state-{{ state.value }}">
<span class="label">{{ state.label }}</span>
<span class="value">{{ state.value }}</span>
<span class="note">{{ state.note }}</span>
</div>
{% for tile in tiles %}
<div class="tile">
<span class="label">{{ tile.label }}</span>
<span class="value">{{ tile.value }}</span>
{% if tile.share is not none %}
<span class="bar" aria-hidden="true"><span style="width: {{ "%.1f" % (100 * tile.share) }}%"></span></span>
{% endif %}
<span class="note">{{ tile.note }}</span>
</div>
{% endfor %}
</div>
{% if clients %}
<h2>Clients</h2>
<p class="note">{{ summary }}</p>
<div class="scroll"><table class="clients">
<thead><tr>
<th scope="col">client</th><th scope="col">state</th><th scope="col" class="right">round</th>
<th scope="col" class="right">seconds</th><th scope="col" class="right">of training</th>
<th scope="col" class="right">ε spent</th><th scope="col"></th><th scope="col">reason</th>
</tr></thead>
<tbody>
{% for client in clients %}
<tr><td>{{ client.name }}</td><td class="client"><span class="dot kind-{{ client.kind }}"></span>{{ client.state }}</td>
<td class="right">{{ client.server_round }}</td><td class="right">{{ client.seconds }}</td>
<td class="right">{{ client.train_seconds }}</td><td class="right">{{ client.epsilon }}</td>
<td class="budget">
{% if client.share is not none %}
<span class="bar" aria-hidden="true"><span style="width: {{ "%.1f" % (100 * client.share) }}%"></span></span>
{% endif %}
</td><td>{{ client.reason }}</td></tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
<p class="note" id="time">as of {{ time }}</p>
"""

_WATCH = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<noscript><meta http-equiv="refresh" content="5"></noscript>
<style>
{% include "watch.css" %}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="warning" id="gone" role="status" hidden></p>
<main>
<div id="live">
{% include "live.html" %}
</div>
<div id="report">
{% include "sections.html" %}
</div>
</main>
<script nonce="{{ nonce }}">
  let version = "{{ version }}";
  async function refresh() {
    const gone = document.getElementById("gone");
    try {
      const answer = await fetch("parts.json?version=" + version, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const parts = await answer.json();
      document.getElementById("live").innerHTML = parts.live;
      if (parts.report !== null) document.getElementById("report").innerHTML = parts.report;
      version = parts.version;
      gone.hidden = true;
    } catch (error) {
      gone.textContent = "fedsvd watch has ended or cannot be reached; this page shows what was known before.";
      gone.hidden = false;
    }
    setTimeout(refresh, document.hidden ? 10000 : 2000);
  }
  setTimeout(refresh, 2000);
</script>
</body>
</html>
"""

TEMPLATES = MappingProxyType({"watch.css": _STYLE, "live.html": _LIVE, "watch.html": _WATCH})
