//! A stack as text: cut to one line, or whole.

use crate::{
    model::{Completeness, Frame, FrameKind, Site},
    report::{
        line::{Line, Look, width},
        name, standard_library,
    },
};

/// The frames to show first to a person: without the allocator's own at the
/// beginning, unless there is nothing else.
#[must_use]
pub fn program_frames(frames: &[Frame]) -> &[Frame] {
    let own = frames
        .iter()
        .take_while(|frame| frame.kind == FrameKind::Allocator)
        .count();
    if own == frames.len() {
        frames
    } else {
        &frames[own..]
    }
}

/// Stands for frames of a standard library that the first one shown has called.
const LEFT_OUT: &str = "… < ";

/// The stack in one line of at most `columns`:
/// `Session::create session.cc:88 < Login::handle < … (+14)`.
///
/// `(+14)` counts the frames left out; a stack that is shown to its end but is
/// not complete ends with `< ?`. One that begins with `… <` begins in a standard
/// library, on behalf of what is shown.
#[must_use]
pub fn brief(site: &Site, columns: usize) -> Line {
    let mut line = Line::default();
    let beyond_allocator = program_frames(&site.frames);
    let frames = standard_library::own_frames(beyond_allocator);
    let Some((innermost, callers)) = frames.split_first() else {
        line.push(Look::Plain, nameless(&site.end));
        line.cut(columns);
        return line;
    };
    let ending = |shown: usize| match frames.len() - shown {
        0 if site.end.is_complete() => String::new(),
        0 => " < ?".to_owned(),
        hidden => format!(" < … (+{hidden})"),
    };
    let beginning = if frames.len() < beyond_allocator.len() {
        LEFT_OUT
    } else {
        ""
    };
    line.push(Look::Faint, beginning.to_owned());
    let columns_left = columns.saturating_sub(width(beginning));
    let (mut function, mut place) =
        innermost_text(innermost, columns_left.saturating_sub(width(&ending(1))));
    if place.is_empty() {
        // File and line say more than how many frames are not shown.
        (function, place) = innermost_text(innermost, columns_left);
    }
    let mut used = width(beginning) + width(&function) + width(&place);
    line.push(Look::Strong, function);
    line.push(Look::Plain, place);
    let mut shown = 1;
    for caller in callers {
        let function = name::function(caller);
        let text = format!(" < {}", name::collapsed(name::without_signature(&function)));
        if used + width(&text) + width(&ending(shown + 1)) > columns {
            break;
        }
        used += width(&text);
        shown += 1;
        line.push(Look::Faint, text);
    }
    if used + width(&ending(shown)) <= columns {
        line.push(Look::Faint, ending(shown));
    }
    line.cut(columns);
    line
}

/// The innermost function and ` file:line` in at most `columns`. Template
/// arguments go first, then the place, then parts of the name.
fn innermost_text(frame: &Frame, columns: usize) -> (String, String) {
    let function = name::function(frame);
    let bare = name::without_signature(&function);
    let place = match (name::place(frame, false), &frame.symbol) {
        (Some(place), _) => format!(" {place}"),
        (None, Some(_)) => offset_and_file(frame),
        (None, None) => String::new(),
    };
    let room = columns.saturating_sub(width(&place));
    // Rather the place than far namespaces, but not at the price of the name.
    if width(&name::collapsed(bare)) <= room || room >= 24 {
        return (name::fitted(bare, room).into_owned(), place);
    }
    (name::fitted(bare, columns).into_owned(), String::new())
}

fn nameless(end: &Completeness) -> String {
    match end {
        Completeness::Complete => "[no stack]".to_owned(),
        Completeness::Incomplete(reason) => format!("[{}]", name::clean(reason)),
    }
}

/// Every frame on a line of its own, from the allocating function outwards,
/// then where an incomplete stack ends and why. With `columns`, names are
/// shortened so that lines fit.
pub fn whole(site: &Site, indent: usize, columns: Option<usize>) -> impl Iterator<Item = Line> {
    let blank = " ".repeat(indent);
    let room = columns.map(|columns| columns.saturating_sub(indent));
    let last = match &site.end {
        _ if site.frames.is_empty() => Some(nameless(&site.end)),
        Completeness::Complete => None,
        Completeness::Incomplete(reason) => {
            Some(format!("[the stack ends here: {}]", name::clean(reason)))
        }
    };
    let last = last.map(|text| {
        let mut line = Line::default();
        line.push(Look::Faint, text);
        line
    });
    site.frames
        .iter()
        .map(move |frame| frame_line(frame, room))
        .chain(last)
        .map(move |rest| {
            let mut line = Line::default();
            line.push(Look::Plain, blank.clone());
            line.append(rest);
            if let Some(columns) = columns {
                line.cut(columns);
            }
            line
        })
}

/// `Session::create(User const&) at src/session.cc:88, inlined`, or
/// `qsort+0x1f (libc.so.6)`.
fn frame_line(frame: &Frame, columns: Option<usize>) -> Line {
    let mut function = name::function(frame);
    let mut place = frame_place(frame, true);
    if let Some(columns) = columns {
        if width(&function) + width(&place) > columns {
            place = frame_place(frame, false);
        }
        // Half of the line at least is the function's.
        let room = columns.saturating_sub(width(&place)).max(columns / 2);
        function = name::fitted(&function, room).into_owned().into();
    }
    let look = match frame.kind {
        FrameKind::Program => Look::Plain,
        FrameKind::Allocator => Look::Faint,
    };
    let mut line = Line::default();
    line.push(look, function);
    line.push(Look::Faint, place);
    line
}

/// Where a frame's code is, to follow its function's name.
fn frame_place(frame: &Frame, whole_path: bool) -> String {
    let mut text = match (name::place(frame, whole_path), &frame.symbol) {
        (Some(place), _) => format!(" at {place}"),
        (None, Some(_)) => offset_and_file(frame),
        // Without a symbol the place is the name.
        (None, None) => String::new(),
    };
    if frame.inlined {
        text.push_str(", inlined");
    }
    text
}

/// `+0x1f (libc.so.6)`, to follow the name of a function whose source is not
/// known.
fn offset_and_file(frame: &Frame) -> String {
    let offset = match frame.symbol_offset {
        0 => String::new(),
        offset => format!("+{offset:#x}"),
    };
    match &frame.module {
        Some(module) => format!("{offset} ({})", name::clean(name::file_name(module))),
        None => offset,
    }
}
