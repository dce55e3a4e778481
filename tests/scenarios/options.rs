//! SPEC section 2: options, and what is refused.

use super::script::*;

#[test]
fn each_senseless_target_is_refused_with_its_own_message() {
    // SPEC O-6
    let script = Script::new();
    let filter = &script.filter;
    let read_only = disk(|with| with.limits.read_only = true);
    let coarse = disk(|with| with.limits.request_alignment = 4096);
    let other = Filter::new(disk(|with| with.length = 512).device()).expect("a seat");
    let cases: [(&Device, Option<Filter>, Errno, &str); 4] = [
        (script.source.device(), None, Errno::EINVAL, "target: is the source itself"),
        (read_only.device(), None, Errno::EROFS, "target: is read-only"),
        (coarse.device(), None, Errno::EINVAL, "target: takes requests in multiples of 4096"),
        (script.target.device(), Some(other), Errno::EINVAL, "replaces: that filter has 512 bytes"),
    ];
    for (target, replaces, errno, message) in cases {
        let error =
            Job::new(filter, target, JobOptions { replaces, ..JobOptions::default() }).expect_err(message);
        assert_eq!(error.errno(), errno, "{message}");
        assert!(error.message().starts_with(message), "{error}");
    }
    let named =
        || JobOptions { options: Options { id: Some("one".into()), ..options() }, ..JobOptions::default() };
    let first = Job::new(filter, script.target.device(), named()).expect("nothing wrong with it");
    let again = Job::new(filter, script.target.device(), JobOptions::default()).expect_err("a job");
    assert_eq!(again.errno(), Errno::EBUSY);
    let elsewhere = Filter::new(disk(|_| {}).device()).expect("a seat");
    let twin = Job::new(&elsewhere, script.target.device(), named()).expect_err("taken");
    assert_eq!(twin.errno(), Errno::EEXIST);
    drop(first);
    Job::new(filter, script.target.device(), named()).expect("filter and name are free again");
}
