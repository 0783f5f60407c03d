"""The checker of final answers: pairs of answer and reference with the right verdict."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import opd
from opd.data.answers import AnswerTask
from opd.data.rows import from_rows
from opd.types import Prompt

RIGHT = [
    # Numbers, as people write them.
    ("18", "18"),
    ("18.", "18"),
    ("#### 18", "18"),
    ("#### 1,000", "1000"),
    (r"\boxed{1{,}000}", "1000"),
    ("2 000", "2000"),
    ("it costs 2 000 in all", "2000"),
    (r"\boxed{2\,000}", "2000"),
    ("12,345,678", "12345678"),
    ("$18", "18"),
    (r"\$18", "18"),
    ("18 dollars", "18"),
    (r"\boxed{18\text{ dollars}}", "18"),
    ("€ 18.50", "18.5"),
    ("3.50", "3.5"),
    ("3.0", "3"),
    ("5.", "5"),
    (".5", "0.5"),
    ("50%", "50"),
    (r"\boxed{50\%}", "50%"),
    ("50%", "0.5"),
    ("-3", "-3"),
    ("−3", "-3"),
    ("it is -3", "-3"),
    ("+3", "3"),
    ("-$3", "-3"),
    ("$-3", "-3"),
    ("007", "7"),
    ("3e-5", "0.00003"),
    ("3E5", "300000"),
    (r"\boxed{3 \times 10^{-5}}", "3e-5"),
    ("3 × 10^2", "300"),
    (r"1.5 \cdot 10^3", "1500"),
    ("1/2", "0.5"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\frac{1}{2}}", "1/2"),
    (r"\boxed{\dfrac{1}{2}}", r"\frac12"),
    (r"\frac1{2}", r"\frac{1}2"),
    ("2/4", "1/2"),
    ("½", "0.5"),
    ("1 1/2", "1.5"),
    (r"\boxed{1\frac{1}{2}}", "3/2"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    ("so it is 1/2.", "0.5"),
    ("each gets 3/4 of it", "0.75"),
    (r"so it is $\frac{3}{4}$.", "0.75"),
    (r"90^\circ", "90"),
    ("90°", "90"),
    (r"\boxed{5\text{ cm}}", "5"),
    ("it is 5cm long", "5"),
    ("the 3rd", "3"),
    ("an 18-year run", "18"),
    # A number in prose is the last one, or the stated one.
    ("first 12, no, 13.", "13"),
    ("There are 3 boxes of 6, so 3 * 6 = 18", "18"),
    ("There are 3 boxes of 6, so 3 * 6 = 18 apples.", "18"),
    ("It is 42. I hope that this helps!", "42"),
    ("It is 42.\n\nI hope that this helps you!", "42"),
    ("The answer is 18 because there are 3 of them.", "18"),
    ("The answer is 18 (3 groups of 6).", "18"),
    ("The answer is 3 * 6 = 18.", "18"),
    ("**Answer:** 18", "18"),
    ("Final answer: **18**", "18"),
    ("### Answer\n\n18", "18"),
    ("The answers are 12", "12"),
    (r"\boxed{12} after 3 steps", "12"),
    (r"first \boxed{11}, then \boxed{12}", "12"),
    (r"\boxed{12} and #### 13", "13"),
    ("so 3 and 4 make\n#### 7", "3 + 4 = 7\n#### 7"),
    (r"It is $\boxed{7}$.", r"Adding, we get $\boxed{7}$."),
    ("7", "She has 3 and then 4 more, which makes 7"),
    (r"\fbox{7}", "7"),
    ("It is **7**.", "7"),
    ("It is `7`", "7"),
    ("(18)", "18"),
    ("x = 18", "18"),
    ("x=18", "x = 18"),
    ("The total is: 18", "18"),
    ("between 10-20, so 15", "15"),
    ("12:30", "12:30"),
    ("2024-05-01", "2024-05-01"),
    # Thoughts are no answer.
    ("<think>maybe 41</think>42", "42"),
    ("maybe 41</think>\n\n42", "42"),
    ("<think>a</think><think>41</think>42", "42"),
    # Maths.
    (r"\boxed{x^{2}+1}", "x^2+1"),
    (r"\boxed{1+x^2}", "x^{2} + 1"),
    (r"\boxed{2^{10}}", "1024"),
    (r"\boxed{\sqrt{2}}", r"\sqrt2"),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{3\sqrt{2}}", r"\sqrt{18}"),
    ("sqrt(2)", r"\sqrt{2}"),
    ("√2", r"\sqrt{2}"),
    ("x**2", "x^2"),
    ("x²", "x^{2}"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{(1, 2)}", "(1,2)"),
    (r"\boxed{\left(1, 2\right)}", "(1,2)"),
    (r"\boxed{\left( \frac{1}{2}, 3 \right)}", "(0.5, 3)"),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}"),
    (r"\boxed{1, 2}", "1,2"),
    (r"\boxed{[0, 1)}", "[0,1)"),
    (r"\boxed{x \leq 3}", r"x \le 3"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{5}", "x=5"),
    (r"\boxed{2\pi}", "2π"),
    ("2 pi", r"2\pi"),
    (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\boxed{\frac{x+1}{2}}", "(x+1)/2"),
    (r"\boxed{\text{$x+1$}}", "x+1"),
    (r"so $x + 1$", "x+1"),
    ("so it is x^2 + 1", "x^2+1"),
    (r"The answer is $\frac{x}{2}$.", r"\frac{x}{2}"),
    (r"\[ \boxed{ \frac{ 1 }{ 3 } } \]", "1/3"),
    # Options.
    ("B", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("B", "(B)"),
    ("B.", "B"),
    ("B. Paris", "B"),
    ("(B) Paris", "B"),
    ("B: Paris", "B"),
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{B}}", "B"),
    (r"\boxed{\textbf{(B)}}", "B"),
    (r"\boxed{\text{(B) } 5}", "B"),
    ("The answer is (B).", "B"),
    ("The answer is B because A is not", "B"),
    ("The correct option is B", "B"),
    ("I would choose option C, since option B is wrong. So C.", "C"),
    ("Of (A) and (B), it is (B) that holds here.", "B"),
    ("**B**", "B"),
    ("Answer: C", "C"),
    # Words.
    ("Paris", "Paris"),
    ("paris.", "Paris"),
    ("The answer is Paris.", "paris"),
    ("The capital of France is known.\nParis", "Paris"),
    ("yes", "Yes"),
    ("Yes.", "yes"),
    ("The answer is yes, because it is", "yes"),
    (r"\boxed{\text{even}}", "even"),
    (r"\boxed{\text{No solution}}", "no solution"),
    ("New  York", "new york"),
    ("Größe", "größe"),
    ("东京", "东京"),
    # An answer in tags.
    ("<think>41</think>\n<answer>42</answer>", "42"),
    ("<answer>\n1/2\n</answer>", "0.5"),
    ("<answer>41</answer> or rather <answer>42</answer>.", "42"),
    ("<answer>The answer is 42.</answer>", "42"),
    (r"<answer>\boxed{42}</answer>", "42"),
    ("<answer> Paris </answer>", "Paris"),
    ("<answer>B</answer>", "B"),
    # A calculation over several lines.
    ("12 + 6\n= 18", "18"),
    ("x\n= 3/4", "0.75"),
    ("≈ 18", "18"),
    # Scripts without spaces.
    ("答案是18。", "18"),
    ("所以一共有 18 个苹果。", "18"),
    ("答案：18", "18"),
    ("合計は18円です。", "18"),
    (r"\boxed{18元}", "18"),
    ("¥18", "18"),
    # Units.
    (r"\boxed{5\,\text{cm}^2}", "5"),
    (r"\boxed{10\text{ km/h}}", "10"),
    ("The area is 10 cm^2.", "10"),
    ("10°C", "10"),
    # Notation.
    (r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\boxed{\begin{bmatrix} 1 \\ 2 \end{bmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed 5", "5"),
    (r"so it is $\boxed 5$.", "5"),
    (r"\boxed{\boldsymbol{18}}", "18"),
    (r"\boxed{\emptyset}", r"\varnothing"),
    (r"\boxed{\mathbb{R}}", r"\mathbb R"),
    (r"\boxed{AB = 5}", "5"),
    (r"\boxed{\angle ABC = 30^\circ}", "30"),
    (r"\boxed{x = 5 \text{ or } x = -5}", "x=5,-5"),
    (r"\boxed{1 \text{ and } 2}", "1, 2"),
    ("18;", "18"),
    ("18?", "18"),
]

WRONG = [
    ("", "42"),
    ("42", ""),
    ("41", "42"),
    ("4", "42"),
    ("142", "42"),
    ("-42", "42"),
    ("4.2", "42"),
    ("1.5", "1,5"),
    ("1,000.5", "1000"),
    # The cases that the last number alone gets wrong.
    (r"\boxed{\frac{1}{2}}", r"\boxed{\frac{3}{2}}"),
    (r"\boxed{\frac{1}{2}}", r"\frac{3}{2}"),
    (r"\boxed{y+1}", r"\boxed{x+1}"),
    ("1/2", "2"),
    (r"\boxed{\frac{1}{2}}", "2"),
    (r"\boxed{x^{2}+1}", "x^{3}+1"),
    (r"\boxed{\sqrt{2}}", "2"),
    (r"\boxed{2^{10}}", "10"),
    (r"\boxed{(1, 2)}", "(3, 2)"),
    (r"\boxed{(1, 2)}", "2"),
    (r"\boxed{(1, 2)}", "(2, 1)"),
    (r"\boxed{(1, 2)}", "[1, 2]"),
    ("3e-5", "7e-5"),
    ("3e-5", "5"),
    ("<think>maybe 42</think>I cannot answer", "42"),
    ("<think>maybe 42", "42"),
    ("maybe 42</think>", "42"),
    ("I cannot answer", "42"),
    ("x+1", "1"),
    ("so it is x + 1", "1"),
    ("<answer>41</answer> and 42", "42"),
    ("<answer></answer> 42", "42"),
    (r"\boxed{AB = 5}", r"\boxed{CD = 5}"),
    (r"\boxed{AB \ge 5}", "5"),
    ("x >= 5", "5"),
    (r"\boxed{1 \text{ or } 2}", "1,3"),
    (r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    (r"\boxed{x^2}", "x"),
    (r"\boxed{5 x}", r"\boxed{5 y}"),
    (r"\boxed{5 x^2}", "5"),
    ("答案是18。", "8"),
    ("北京", "上海"),
    ("3x", "3"),
    ("2/3", "2"),
    (r"\boxed{3\sqrt{2}}", "3"),
    (r"\boxed{\frac{3}{x}}", "3"),
    ("5%", "5.5"),
    ("50%", "0.05"),
    ("1/0", "0"),
    ("10-20", "20"),
    ("12:30", "30"),
    ("2024-05-01", "1"),
    (r"\boxed{12} or 13", "13"),
    (r"\boxed{12", "13"),
    ("The answer is 12, not 13.", "13"),
    ("13", r"\boxed{12}, not 13"),
    (r"\boxed{x < 3}", r"x \le 3"),
    (r"\boxed{[0, 1)}", "(0,1)"),
    (r"\boxed{\{1, 2\}}", r"\{1, 3\}"),
    (r"\boxed{x = 5}", "y = 5"),
    (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\4&3\end{pmatrix}"),
    (r"\boxed{\frac{1}{}}", "1"),
    (r"\boxed{}", "1"),
    # Options and words.
    ("A", "B"),
    ("(A)", "B"),
    ("(A) Paris, not (B)", "B"),
    ("A cat sat here", "A"),
    ("Both are right", "B"),
    ("Because", "B"),
    (r"\boxed{\text{A}}", "B"),
    ("The answer is (A), and (B) is wrong.", "B"),
    ("AB", "B"),
    ("no", "yes"),
    ("sey", "yes"),
    ("eys", "yes"),
    ("The answer is Paris.", "London"),
    ("not Paris", "Paris"),
    ("London\nParis", "London"),
    ("Paris 12", "Paris"),
    ("ba", "ab"),
]


@pytest.mark.parametrize(("text", "reference"), RIGHT)
def test_right(text: str, reference: str) -> None:
    assert opd.answers_match(text, reference)


@pytest.mark.parametrize(("text", "reference"), WRONG)
def test_wrong(text: str, reference: str) -> None:
    assert not opd.answers_match(text, reference)


@pytest.mark.slow
def test_an_endless_comparison_is_ended_and_the_next_one_works() -> None:
    started = time.perf_counter()
    assert not opd.answers_match(r"\boxed{9^{9^{9}}}", "x+1")
    assert not opd.answers_match(r"\boxed{" + "(" * 400 + "1" + ")" * 400 + "+x}", "x+1")
    assert not opd.answers_match(r"\boxed{x" + "+1" * 5000 + "}", "x+1")
    assert time.perf_counter() - started < 120  # three seconds each of computing; a busy machine takes longer
    assert opd.answers_match(r"\boxed{1+x}", "x+1")


LONG = "9" * 5000
"""More digits than Python reads as an integer."""


@pytest.mark.parametrize("text", [LONG, f"answer: -{LONG}", f"0.{LONG}", f"1/{LONG}", f"{LONG}/{LONG}", f"{LONG}%"])
def test_a_number_of_thousands_of_digits_is_no_answer_but_equals_itself(text: str) -> None:
    assert not opd.answers_match(text, "7")
    assert not opd.answers_match(text, "1/2")
    assert not opd.answers_match("7", text)
    assert opd.answers_match(text, text)


@pytest.mark.parametrize(
    "unit", ["<think>", "[THINK]", "<think></think>", r"\(", r"\[", "$", ".", "answer ", "9", r"\boxed{"]
)
def test_a_text_that_repeats_itself_is_read_at_once(unit: str) -> None:
    started = time.process_time()
    opd.answers_match(unit * (200_000 // len(unit)), "7")
    assert time.process_time() - started < 5


@pytest.mark.slow
def test_nothing_of_an_answer_is_run(tmp_path: Path) -> None:
    for code in (f"open('{tmp_path}/ran', 'w')", f"__import__('os').system('touch {tmp_path}/ran')"):
        for text in (code, rf"\boxed{{{code}}}", rf"\boxed{{x+{code}}}"):
            assert not opd.answers_match(text, "x+1")
    assert not list(tmp_path.iterdir())


def test_threads_may_ask_at_a_time() -> None:
    verdicts: dict[int, bool] = {}

    def ask(number: int) -> None:
        verdicts[number] = opd.answers_match(rf"\boxed{{x+{number}}}", f"{number % 4}+x")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: number < 4 for number in range(8)}


def test_nothing_is_printed_and_nothing_is_imported_for_numbers() -> None:
    code = (
        "import sys, opd; assert opd.answers_match('1,000', '1000'); assert 'math_verify' not in sys.modules;"
        r"assert opd.answers_match(r'\boxed{1+x}', 'x+1'); assert 'sympy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_checker_of_answers_takes_the_same_verdicts() -> None:
    prompt = Prompt(id="p", text="1/4 + 1/4", answer="0.5")
    for text, reward in ((r"\boxed{\frac{1}{2}}", 1.0), (r"\boxed{\frac{3}{2}}", 0.0)):
        assert AnswerTask().step(prompt, [{"role": "assistant", "content": text}]).correct == reward


def test_one_of_several_reference_answers_is_enough() -> None:
    ((prompt,), task) = from_rows(
        [{"prompt": "capital?", "answer": ["Den Haag", "The Hague"]}], key="prompts", chat=True
    )
    assert task is not None
    for text, reward in (("Den Haag", 1.0), ("the hague.", 1.0), ("['Den Haag', 'The Hague']", 0.0), ("Leiden", 0.0)):
        assert task.step(prompt, [{"role": "assistant", "content": text}]).correct == reward
