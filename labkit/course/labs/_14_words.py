"""Lab 14: the mistakes in admitting, drawing and estimating that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs._14_mistakes import (
    Admit,
    Draw,
    Quantile,
    below_edges,
    cold_given_up,
    let_in,
    nobody_fails,
    some_nan_drawn,
)

_ADMIT = {
    "refused_for_now": "A request that costs more than the bucket ever holds was told when to come again. It would "
    "come again for ever: raise ValueError, which becomes a 400.",
    "never_refused": "A request that costs more than the bucket ever holds has to be refused for good, with "
    "ValueError.",
    "not_filled": "Nothing has flowed in since the last request: level + rate · elapsed.",
    "seconds_for_tokens": "The seconds were added to the level. Tokens flow in at `rate` a second.",
    "reset_by_time": "After a second the bucket is full again, whatever the rate. That is a fixed window, and lets "
    "twice as much through around its edge.",
    "overflows": "The bucket holds more than it can. After a night's pause everything would go through at once: "
    "min(burst, …).",
    "exact_is_refused": "A request that takes exactly what is there goes through.",
    "takes_nothing": "A request that went through took nothing.",
    "takes_from_refused": "A refused request took tokens. Then those who ask too often keep each other out.",
    "refill_forgotten": "A refused request lost what had flowed in since the last one: the level must be kept as it is "
    "now.",
    "emptied": "A refused request emptied the bucket. It takes nothing.",
    "waits_for_all": "The wait is as long as if the bucket were empty. Only what is missing has to flow in.",
    "waits_until_full": "The wait is until the bucket is full. It need only hold the cost.",
    "times_rate": "The wait was multiplied by the rate. Seconds are tokens over tokens a second.",
    "tokens_for_seconds": "The missing tokens came back in place of seconds.",
    "rounded_down": "The seconds were rounded down: who comes then is refused again, by a little.",
    "rounded": "The seconds were rounded to the nearest. Half of those who come then are refused again: round up.",
    "one_more": "A second too much, where the wait is a whole number: `math.ceil`, not `int(…) + 1`.",
    "not_rounded": "Retry-After is whole seconds (RFC 9110, 10.2.3). Round up.",
}
ADMIT = (
    *(Mistake(name, says, like=Admit(name)) for name, says in _ADMIT.items()),
    Mistake("float_seconds", "The seconds are right, as a float. Retry-After has no decimal point: `math.ceil` gives "
            "an int.", like=Admit.float_seconds),
    Mistake("never_refused", _ADMIT["never_refused"], when=let_in),
)  # fmt: skip

_DRAW = {
    "one_stream": "All rows share one stream of noise, so a row's token depends on who stands before it. Make a "
    "generator for every row, from its own key.",
    "row_counts": "The row's number is in the counter. The same request in another place of the batch draws another "
    "token.",
    "same_at_every_step": "The step i is not in the counter: a continuation meets the same noise at every step, and "
    "falls for the same tokens again and again.",
    "same_for_every_continuation": "The continuation k is not in the counter: all n answers would be the same.",
    "overlaps": "Step i is in the lowest word, which NumPy itself counts up, one for every four numbers drawn. So the "
    "next step's noise is this one's, moved by four. Put k and i into the two highest words.",
    "overlaps, k in the next": "Step i is in the lowest word, which NumPy itself counts up, one for every four numbers "
    "drawn. So the next step's noise is this one's, moved by four. Put i into the highest word.",
    "swapped": "k and i have changed places: counter=[0, 0, k, i].",
    "i_plus_k": "k and i were added: step 1 of continuation 0 and step 0 of continuation 1 share their noise. Each has "
    "a word of its own.",
    "seed_left_out": "The seed is not in the key: every request draws the same.",
    "seeds_added": "Seed, continuation and step were added up. Seed 7 at step 1 is then seed 8 at step 0.",
    "default_generator": "This is another generator. The noise is that of Philox, with key=seed and counter=[0, 0, k, "
    "i]: who counts need not remember.",
    "torchs_generator": "The token came from torch's global generator, which everybody in the process shares. The "
    "answer then depends on the company.",
    "always_greedy": "That is the likeliest token, whatever the temperature. Add the noise.",
    "noise_when_cold": "At temperature 0 there was noise, too. There the likeliest token is meant.",
    "zero_divided": "Logits were divided by a temperature of 0. There the likeliest token is meant, without noise.",
    "temperature_multiplies": "The logits were multiplied by the temperature. Hot is flat: divide.",
    "temperature_left_out": "The temperature does nothing. Divide the logits by it, and not the noise: of both divided "
    "the largest stays the largest.",
    "log_once": "The noise is −log u, an exponential one. Gumbel's is −log(−log u).",
    "sign_lost": "The noise is log(−log u), Gumbel's turned over: unlikely tokens win too often.",
    "uniform_added": "Uniform numbers were added as they are. Gumbel's noise is −log(−log u); with no other is the "
    "largest drawn with the softmax's probability.",
    "probabilities_not_logits": "The noise was added to probabilities. It belongs to logits (or log-probabilities).",
    "cumulative": "One uniform number was looked up in the cumulative probabilities. That draws from the same "
    "distribution, and another token: here every token has noise of its own.",
    "forbidden_is_broken": "A row with −∞ was given up. That is how a grammar forbids a token; only NaN is broken.",
    "only_all_nan": "A row with some NaN in it gave a token. One NaN is enough: nobody knows what the others "
    "are worth.",
    "nan_gets_out": "NaN was replaced by a number, or never looked at, and a token came out. Give −1, so that this one "
    "request ends with an error.",
    "nan_is_token_0": "A row with NaN gave token 0. That is a real token: give −1.",
    "int32": "The ids are of another integer type; int64 was asked for.",
}
DRAW = (
    *(Mistake(name.replace(", k in the next", "_in_the_lowest_word"), says, like=Draw(name))
      for name, says in _DRAW.items()),
    Mistake("zero_divided", _DRAW["zero_divided"], when=cold_given_up),
    Mistake("only_all_nan", _DRAW["only_all_nan"], when=some_nan_drawn),
    Mistake("nobody_fails", "It fails where no row is there. An engine may have nothing to draw.", when=nobody_fails),
)  # fmt: skip

_QUANTILE = {
    "summed_again": "The counts were summed up. Prometheus' are cumulative already: those of `le` hold all below.",
    "upper_edge": "The bucket's upper edge came back. Go as far into the bucket as the rank lies in it.",
    "lower_edge": "The bucket's lower edge came back. Go as far into the bucket as the rank lies in it.",
    "middle": "The middle of the bucket came back. Go as far into it as the rank lies in it.",
    "from_above": "The way into the bucket was counted from above.",
    "geometric": "The way into the bucket was gone in logarithms. Prometheus goes straight, for classic histograms.",
    "bucket_before": "The bucket before the right one was taken: the first whose count reaches the rank.",
    "strictly_above": "A count that just equals the rank reaches it.",
    "rank_not_lowered": "The rank was not lowered by what lies below the bucket.",
    "share_of_all": "What lies in the bucket was divided by all observations. By those in the bucket.",
    "rank_over_count": "The rank was divided by the bucket's cumulative count. Take away what lies below from both.",
    "whole_rank": "The rank was rounded to a whole observation. It is a share of them, q · total, as it is.",
    "finite_total": "The last finite bucket was taken for all observations. The one of +Inf is.",
    "infinite": "Infinity came back for the last bucket. Prometheus gives the last finite edge: no more is known.",
    "nan_beyond": "NaN came back for the last bucket. Prometheus gives the last finite edge: no more is known.",
    "starts_at_the_first_edge": "The first bucket begins at zero, not at its own edge.",
    "nobody_is_zero": "Where nobody was observed there is no quantile; zero would look like a very fast server. NaN.",
    "bare_number": "Only the estimate came back. The edges of its bucket say how wrong it can be: three numbers.",
    "any_q": "q has to be above 0 and at most 1; anything else is a ValueError.",
    "one_refused": "q = 1 is the largest observation, and may be asked for; q = 0 may not.",
}
QUANTILE = (
    *(Mistake(name, says, like=Quantile(name)) for name, says in _QUANTILE.items()),
    Mistake("any_q", _QUANTILE["any_q"], when=let_in),
    Mistake("nobody_fails", "It fails where nobody was observed: 0 / 0. NaN, three times.", when=nobody_fails),
    Mistake("other_edges", "The estimate is right. Beside it belong the edges of the bucket that it lies in.",
            when=below_edges),
)  # fmt: skip
