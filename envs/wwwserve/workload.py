"""Demand: when the next request of a provider's users arrives, and how long its prompt and answer are."""

import math

from envs.wwwserve.pool import chance
from envs.wwwserve.state import BURST, GAP, LENGTH, NEVER, PURPOSES
from market.chance import exponential, gamma
from market.rule import rule


@rule
def _gap(w, n, p, shape):
    """The next gap between arrivals in units of its mean: exponential, or Gamma with a given shape."""
    if shape == 1.0:
        return exponential(chance(w, n, p, GAP))
    driver = w.driver[n * w.setting[0].providers + p]
    value, draw = gamma(w.net[n].key, p * PURPOSES + GAP, driver.draws[GAP], shape)
    driver.draws[GAP] = draw
    return value


@rule
def toggle_burst(w, n, p, place, driver):
    """Begin or end a burst and draw how long the new state lasts."""
    driver.bursting = 1 - driver.bursting
    mean = place.burst_s if driver.bursting == 1 else place.calm_s
    driver.toggle_s += mean * exponential(chance(w, n, p, BURST))


@rule
def _burst_weight(place, bursting):
    """Rate multiplier of a two-state modulated process whose mean is 1."""
    mean = (place.burst_factor * place.burst_s + place.calm_s) / (place.burst_s + place.calm_s)
    return (place.burst_factor if bursting == 1 else 1.0) / mean


@rule
def next_arrival_s(w, n, p, now):
    """When the next own request of provider p arrives, after `now` (s); NEVER when there is none before arrivals end.

    method   a gap of unit mean is used up at the current rate: piecewise constant, times the burst state
    """
    setting = w.setting[0]
    place = w.place[p]
    driver = w.driver[n * setting.providers + p]
    if place.trace_count > 0:
        return _next_of_trace(w, place, driver, now, setting.arrivals_until_s)
    if place.burst_factor != 1.0:
        while driver.toggle_s <= now:  # the users of who was offline went on
            toggle_burst(w, n, p, place, driver)
    left = _gap(w, n, p, place.gap_shape)
    t = now
    k = 0
    while k < driver.segments and driver.until_s[k] <= t:
        k += 1
    while k < driver.segments and t < setting.arrivals_until_s:
        rate = driver.rate[k]
        end = driver.until_s[k]
        if place.burst_factor != 1.0:
            rate *= _burst_weight(place, driver.bursting)
            end = min(end, driver.toggle_s)
        if rate * (end - t) >= left:
            t += left / rate
            return t if t < setting.arrivals_until_s else NEVER
        left -= rate * (end - t)
        t = end
        if place.burst_factor != 1.0 and end == driver.toggle_s:
            toggle_burst(w, n, p, place, driver)
        if end == driver.until_s[k]:
            k += 1
    return NEVER


@rule
def _next_of_trace(w, place, driver, now, until_s):
    """The next row of a trace; those of a time when the provider was offline are passed over."""
    while driver.trace_place < place.trace_count and w.trace[place.trace_first + driver.trace_place].arrival_s < now:
        driver.trace_place += 1
    if driver.trace_place >= place.trace_count:
        return NEVER
    time_s = w.trace[place.trace_first + driver.trace_place].arrival_s
    return time_s if time_s < until_s else NEVER


@rule
def _place_of(w, table, u):
    """Row of a quantile table at or below u, and how far u lies towards the next one, in [0, 1]."""
    rows = w.setting[0].length_rows
    first = table * rows
    low = 0
    high = rows - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if w.length[first + middle].p <= u:
            low = middle
        else:
            high = middle
    left = w.length[first + low].p
    return first + low, (u - left) / (w.length[first + low + 1].p - left)


@rule
def draw_lengths(w, n, p, request):
    """Write prompt, answer and forecast tokens of the next request of provider p, in place.

    An answer is cut at the class's max_tokens and where prompt and answer would not fit in any engine of the network.
    """
    setting = w.setting[0]
    driver = w.driver[n * setting.providers + p]
    place = w.place[p]
    kind = w.kind[driver.kind]
    room = w.net[n].room
    if place.trace_count > 0:
        recorded = w.trace[place.trace_first + driver.trace_place]
        driver.trace_place += 1
        prompt = recorded.prompt_tokens
        output = recorded.output_tokens
    else:
        row, part = _place_of(w, kind.table, chance(w, n, p, LENGTH))
        a = w.length[row].prompt_tokens
        prompt = int(a + part * (w.length[row + 1].prompt_tokens - a))
        row, part = _place_of(w, kind.table, chance(w, n, p, LENGTH))
        b = w.length[row].output_tokens
        output = int(b + part * (w.length[row + 1].output_tokens - b))
    longest = max(min(kind.max_tokens, room // 2), 1)
    request.prompt_tokens = min(max(prompt, 1), max(room - longest, 1))
    request.output_tokens = min(max(output, 1), longest)
    request.forecast_tokens = longest
    if setting.length_error >= 0.0:
        radius = math.sqrt(-2.0 * math.log(chance(w, n, p, LENGTH)))
        normal = radius * math.cos(6.283185307179586 * chance(w, n, p, LENGTH))
        forecast = int(request.output_tokens * math.exp(setting.length_error * normal))
        request.forecast_tokens = min(max(forecast, 1), longest)
