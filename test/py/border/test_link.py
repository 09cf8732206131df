import threading
import time

import pytest

from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import SidecarError, TrainingError
from rcm_sidecar.link import Cancel, JobCancelled, RecordingLink, Requests, SampleTicket, Ticket
from rcm_sidecar.outbox import MAX_BATCH_ITEMS, Outbox
from rcm_sidecar.protocol import EndBody, MetricItem, Progress, RunSample, StepBody


def progress(step):
    return Progress(
        step=step,
        steps=9,
        phase="student",
        student_updates=0,
        critic_updates=0,
        samples_per_second=0.0,
        eta_seconds=0.0,
        values={},
    )


def metric(step):
    return MetricItem(step=step, phase="student", time=0.0, values={})


def drain(outbox, now):
    taken = []
    while (item := outbox.take(now)) is not None:
        taken.append(item)
    return taken


class TestOutbox:
    def test_metrics_are_batched_and_kept_progress_is_coalesced(self):
        outbox = Outbox(0.1, lambda: None)
        for step in range(5):
            outbox.metric(metric(step))
            outbox.progress(progress(step))
        (_, batch), (_, newest) = drain(outbox, 1.0)
        assert [item.step for item in batch.items] == [0, 1, 2, 3, 4]
        assert (newest.step, outbox.dropped) == (4, 4)
        outbox.metric(metric(5))
        assert outbox.take(1.05) is None
        assert outbox.due_in(1.05) == pytest.approx(0.05)
        assert len(drain(outbox, 1.1)) == 1

    def test_order_is_kept_around_other_events_and_end_comes_last(self):
        outbox = Outbox(0.1, lambda: None)
        outbox.metric(metric(1))
        outbox.put("paused", StepBody(step=1))
        outbox.metric(metric(2))
        outbox.progress(progress(2))
        end = EndBody(state="succeeded", step=2, student_updates=0, critic_updates=0, checkpoint=None, exports=())
        outbox.put("end", end)
        assert [kind for kind, _ in drain(outbox, 0.0)] == ["metric", "paused", "metric", "progress", "end"]

    def test_what_could_not_be_sent_goes_back_to_the_front(self):
        outbox = Outbox(0.1, lambda: None)
        outbox.put("paused", StepBody(step=1))
        outbox.put("continued", StepBody(step=1))
        item = outbox.take(0.0)
        outbox.put_back(item)
        assert [kind for kind, _ in drain(outbox, 0.0)] == ["paused", "continued"]

    def test_a_batch_is_bounded(self):
        outbox = Outbox(0.1, lambda: None)
        for step in range(MAX_BATCH_ITEMS + 1):
            outbox.metric(metric(step))
        assert len(outbox) == MAX_BATCH_ITEMS + 1
        outbox.put("paused", StepBody(step=1))
        assert [len(body.items) for kind, body in drain(outbox, 0.0) if kind == "metric"] == [MAX_BATCH_ITEMS, 1]


class TestRequests:
    def test_cancel_stays_and_can_only_become_more_abrupt(self):
        requests = Requests()
        requests.raise_if_cancelled_now()
        requests.cancel(Cancel(checkpoint=True))
        requests.cancel(Cancel(checkpoint=False))
        requests.cancel(Cancel(checkpoint=True))
        assert requests.cancelled() == Cancel(checkpoint=False)
        with pytest.raises(JobCancelled):
            requests.raise_if_cancelled_now()

    def test_pause_waits_serves_tickets_and_reports(self):
        link = RecordingLink()
        answers = []
        link.requests.pause(True)

        def others():
            link.requests.add_checkpoint(Ticket(answers.append, "asked"))
            while not answers:
                time.sleep(0.001)
            link.requests.pause(False)

        helper = threading.Thread(target=others)
        helper.start()
        link.requests.wait_while_paused(7, serve=lambda: link.requests.take_checkpoint().done({"step": 7}))
        helper.join()
        assert answers == [{"step": 7}]
        assert [(record.type, record.body) for record in link.records] == [("paused", 7), ("continued", 7)]

    def test_a_cancel_ends_a_pause(self):
        requests = Requests()
        requests.pause(True)
        threading.Timer(0.02, lambda: requests.cancel(Cancel(checkpoint=False))).start()
        requests.wait_while_paused(1)

    def test_every_ticket_is_answered_once_at_the_latest_by_the_end(self):
        requests = Requests()
        answers = []
        sample = RunSample(steps=4, num=1, seed=0, label=3)
        for _ in range(2):
            requests.add_checkpoint(Ticket(answers.append))
        requests.add_sample(SampleTicket(answers.append, sample))
        ticket = requests.take_checkpoint()
        ticket.done({"step": 1})
        ticket.fail(ValueError())
        requests.close()
        requests.add_checkpoint(Ticket(answers.append))
        assert answers[0] == {"step": 1}
        assert [error.code for error in answers[1:]] == ["E_RUN_ENDED"] * 3


class TestErrors:
    def test_causes_contexts_and_groups_each_once(self):
        try:
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise TrainingError("E_NON_FINITE", "bad", "do this") from error
        except TrainingError as error:
            body = error_body(error, step=4)
        assert (body.code, body.hint, body.step) == ("E_NON_FINITE", "do this", 4)
        assert [link.type for link in body.chain] == ["rcm_sidecar.errors.TrainingError", "KeyError"]
        assert body.chain[0].frames[-1].text.startswith("raise TrainingError")
        group = ExceptionGroup("both", [ValueError("a"), SidecarError("E_DATA", "b")])
        assert [link.type for link in error_body(group).chain] == [
            "ExceptionGroup",
            "ValueError",
            "rcm_sidecar.errors.SidecarError",
        ]
        loop = ValueError("loop")
        loop.__context__ = KeyError("other")
        loop.__context__.__context__ = loop
        assert len(error_body(loop).chain) == 2

    def test_a_long_message_is_cut_and_odd_details_become_text(self):
        error = SidecarError("E_DATA", "x" * 100_000)
        error.details = {"path": object, "numbers": (1, 2.5)}
        body = error_body(error)
        assert len(body.message) < 30_000
        assert body.details == {"path": "<class 'object'>", "numbers": [1, 2.5]}
