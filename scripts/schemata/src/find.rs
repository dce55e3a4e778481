//! Where in the syntax of a file its mutants belong.
//!
//! A mutant is a change of text, and changing an operator changes what binds to what: `a - b * c` with `/` for `-` is
//! `(a / b) * c`. So what is exchanged is the whole chain of operators that an operator stands in, up to the nearest
//! parenthesis, argument, block or statement.

use crate::write::{arms, head, marked};
use crate::{Edit, Fate, Mutant};
use std::ops::Range;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, Meta, ReturnType, Token, Type, UnOp};

pub(crate) struct Found {
    pub(crate) edits: Vec<Edit>,
    pub(crate) fates: Vec<(usize, Fate)>,
}

pub(crate) fn find(text: &str, mutants: Vec<Mutant>) -> Result<Found, syn::Error> {
    let file = syn::parse_file(text)?;
    let mut finder = Finder {
        left: mutants,
        chain: None,
        constant: 0,
        test: 0,
        constants: Vec::new(),
        names: Vec::new(),
        found: Found { edits: Vec::new(), fates: Vec::new() },
    };
    finder.visit_file(&file);
    finder.switch_constants(text);
    let lost = std::mem::take(&mut finder.left);
    finder.found.fates.extend(lost.into_iter().map(|mutant| (mutant.number, Fate::Unplaced)));
    Ok(finder.found)
}

struct Finder {
    /// Those whose place is still to be found.
    left: Vec<Mutant>,
    /// The chain of operators whose operands are looked at.
    chain: Option<Chain>,
    /// How many constant contexts this is in.
    constant: u32,
    /// How many modules and functions this is in that don't ship.
    test: u32,
    /// Constants with mutants in their values.
    constants: Vec<Constant>,
    /// Names that stand by themselves in expressions that ship, and whether they have to be known at compile time.
    names: Vec<(String, Range<usize>, bool)>,
    found: Found,
}

/// A private constant. Where it is asked for only when the program runs, a function can stand for it, which asks the switch.
struct Constant {
    name: String,
    of: Range<usize>,
    value: Range<usize>,
    behind: usize,
    mutants: Vec<Mutant>,
}

struct Chain {
    span: Range<usize>,
    mutants: Vec<Mutant>,
}

fn bytes(of: &impl Spanned) -> Range<usize> {
    of.span().byte_range()
}

impl Finder {
    /// Takes those that this is the place of.
    fn take(&mut self, wanted: impl Fn(&Mutant) -> bool) -> Vec<Mutant> {
        let (taken, left) = std::mem::take(&mut self.left).into_iter().partition(|mutant| wanted(mutant));
        self.left = left;
        taken
    }

    /// What this place knows at once of the fate of mutants; gives back those that can be switched here.
    fn judge(&mut self, mutants: Vec<Mutant>) -> Vec<Mutant> {
        let fate = match (self.test, self.constant) {
            (0, 0) => Fate::Switched,
            (0, _) => Fate::Constant,
            _ => Fate::Test,
        };
        self.found.fates.extend(mutants.iter().map(|mutant| (mutant.number, fate)));
        if fate == Fate::Switched { mutants } else { Vec::new() }
    }

    /// Says what becomes of mutants.
    fn refuse(&mut self, mutants: Vec<Mutant>, fate: Fate) {
        self.found.fates.extend(mutants.into_iter().map(|mutant| (mutant.number, fate)));
    }

    /// Two choices of the same expression are one.
    fn choose(&mut self, span: Range<usize>, mutants: Vec<Mutant>) {
        let mutants = self.judge(mutants);
        if mutants.is_empty() {
            return;
        }
        for edit in &mut self.found.edits {
            if let Edit::Choice { span: other, mutants: held } = edit
                && *other == span
            {
                held.extend(mutants);
                return;
            }
        }
        self.found.edits.push(Edit::Choice { span, mutants });
    }

    fn insert(&mut self, at: usize, text: String) {
        self.found.edits.push(Edit::Insert { at, text });
    }

    /// Looks at something that is no operand of the chain around it.
    fn apart(&mut self, look: impl FnOnce(&mut Self)) {
        let around = self.chain.take();
        look(self);
        self.chain = around;
    }

    /// Looks at an expression that is a chain of its own, or a part of the one around it.
    fn operator(&mut self, operator: Range<usize>, whole: &Expr, look: impl FnOnce(&mut Self)) {
        let own =
            self.take(|mutant| mutant.genre.ends_with("Operator") && mutant.span.start == operator.start);
        if let Some(chain) = &mut self.chain {
            chain.mutants.extend(own);
            look(self);
            return;
        }
        self.chain = Some(Chain { span: bytes(whole), mutants: own });
        look(self);
        let chain = self.chain.take().expect("put there above, and each inner one is put back");
        self.choose(chain.span, chain.mutants);
    }

    fn function(
        &mut self,
        attributes: &[Attribute],
        signature: &syn::Signature,
        body: Option<&Block>,
        look: impl FnOnce(&mut Self),
    ) {
        let (test, constant) = (!ships(attributes), signature.constness.is_some());
        self.test += u32::from(test);
        self.constant += u32::from(constant);
        if let Some((block, first)) = body.and_then(|block| Some((block, block.stmts.first()?))) {
            let start = bytes(first).start;
            let own = self.take(|mutant| mutant.genre == "FnValue" && mutant.span.start == start);
            let own = self.judge(own);
            self.replace_value(signature, block, own);
        }
        self.apart(look);
        self.test -= u32::from(test);
        self.constant -= u32::from(constant);
    }

    fn replace_value(&mut self, signature: &syn::Signature, block: &Block, mutants: Vec<Mutant>) {
        if mutants.is_empty() {
            return;
        }
        let open = bytes(&block.brace_token.span.open()).end;
        let some = matches!(&signature.output, ReturnType::Type(_, of) if matches!(**of, Type::ImplTrait(_)));
        if some {
            let close = bytes(&block.brace_token.span.close()).start;
            self.found.edits.push(Edit::Iterator { span: open..close, mutants });
            return;
        }
        for Mutant { number, replacement, .. } in mutants {
            let value = marked(number, &format!("return {replacement};"));
            self.insert(open, format!(" if crate::mutant::on({number}) {{ {value} }}"));
        }
    }

    /// Has functions stand for constants, where that is possible.
    fn switch_constants(&mut self, text: &str) {
        for Constant { name, of, value, behind, mutants } in std::mem::take(&mut self.constants) {
            let uses = || self.names.iter().filter(|(used, ..)| *used == name);
            if uses().any(|(.., constant)| *constant) {
                self.refuse(mutants, Fate::Constant);
                continue;
            }
            for (_, span, _) in uses() {
                self.found
                    .edits
                    .push(Edit::Replace { span: span.clone(), text: format!("mutated_{name}()") });
            }
            let body = head(&mutants) + &text[value.clone()] + &arms(text, value, &mutants);
            let function = format!(
                " #[allow(non_snake_case)] #[inline(always)] fn mutated_{name}() -> {} {{ {body} }}",
                &text[of]
            );
            self.found.edits.push(Edit::Insert { at: behind, text: function });
            self.refuse(mutants, Fate::Switched);
        }
    }

    /// Looks at what is evaluated when it is compiled.
    fn constant(&mut self, look: impl FnOnce(&mut Self)) {
        self.constant += 1;
        self.apart(look);
        self.constant -= 1;
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let test = !ships(attributes(item));
        self.test += u32::from(test);
        if let syn::Item::Const(constant) = item
            && matches!(constant.vis, syn::Visibility::Inherited)
            && self.test + self.constant == 0
        {
            let value = bytes(&constant.expr);
            let mutants =
                self.take(|mutant| value.start <= mutant.span.start && mutant.span.end <= value.end);
            if !mutants.is_empty() {
                let (name, of, behind) =
                    (constant.ident.to_string(), bytes(&constant.ty), bytes(constant).end);
                self.constants.push(Constant { name, of, value, behind, mutants });
            }
        }
        self.apart(|finder| match item {
            syn::Item::Const(_) | syn::Item::Static(_) => {
                finder.constant(|finder| visit::visit_item(finder, item))
            }
            _ => visit::visit_item(finder, item),
        });
        self.test -= u32::from(test);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig, Some(&item.block), |finder| visit::visit_item_fn(finder, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, Some(&item.block), |finder| {
            visit::visit_impl_item_fn(finder, item)
        });
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.function(&item.attrs, &item.sig, item.default.as_ref(), |finder| {
            visit::visit_trait_item_fn(finder, item)
        });
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.constant(|finder| visit::visit_impl_item_const(finder, item));
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.constant(|finder| visit::visit_trait_item_const(finder, item));
    }

    fn visit_type(&mut self, of: &'ast Type) {
        self.constant(|finder| visit::visit_type(finder, of));
    }

    fn visit_pat(&mut self, pattern: &'ast syn::Pat) {
        if let syn::Pat::Ident(name) = pattern {
            // It may be a constant.
            self.names.push((name.ident.to_string(), bytes(&name.ident), true));
        }
        self.constant(|finder| visit::visit_pat(finder, pattern));
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        let (start, behind) = (bytes(arm).start, bytes(&arm.pat).end);
        let deleted = self.take(|mutant| mutant.genre == "MatchArm" && mutant.span.start == start);
        let guard = arm.guard.as_ref().map(|(_, guard)| &**guard);
        for Mutant { number, .. } in self.judge(deleted) {
            let here = format!("!crate::mutant::on({number})");
            match guard {
                None => self.insert(behind, format!(" if {here}")),
                Some(guard) => {
                    self.insert(bytes(guard).start, format!("{here} && ("));
                    self.insert(bytes(guard).end, ")".into());
                }
            }
        }
        if let Some(guard) = guard {
            let span = bytes(guard);
            let own = self.take(|mutant| mutant.genre == "MatchArmGuard" && mutant.span.start == span.start);
            if holds_let(guard) {
                self.refuse(own, Fate::Unplaced);
            } else {
                self.choose(span, own);
            }
        }
        self.apart(|finder| visit::visit_arm(finder, arm));
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        match expression {
            Expr::Binary(binary) if holds_let(expression) => {
                let operator = bytes(&binary.op);
                let own = self
                    .take(|mutant| mutant.genre == "BinaryOperator" && mutant.span.start == operator.start);
                self.refuse(own, Fate::LetChain);
                self.apart(|finder| finder.visit_expr(&binary.left));
                self.apart(|finder| finder.visit_expr(&binary.right));
            }
            Expr::Binary(binary) => {
                self.operator(bytes(&binary.op), expression, |finder| visit::visit_expr(finder, expression));
            }
            Expr::Unary(unary) if !matches!(unary.op, UnOp::Deref(_)) => {
                self.operator(bytes(&unary.op), expression, |finder| visit::visit_expr(finder, expression));
            }
            // Operands, but no chain of their own.
            Expr::Unary(_) | Expr::Reference(_) => visit::visit_expr(self, expression),
            Expr::Cast(cast) => self
                .operator(bytes(&cast.as_token), expression, |finder| visit::visit_expr(finder, expression)),
            Expr::Repeat(repeat) => {
                self.apart(|finder| finder.visit_expr(&repeat.expr));
                self.constant(|finder| finder.visit_expr(&repeat.len));
            }
            Expr::Const(_) => self.constant(|finder| visit::visit_expr(finder, expression)),
            Expr::Struct(whole) => {
                let starts: Vec<usize> = whole.fields.iter().map(|field| bytes(field).start).collect();
                let own =
                    self.take(|mutant| mutant.genre == "StructField" && starts.contains(&mutant.span.start));
                self.choose(bytes(whole), own);
                self.apart(|finder| visit::visit_expr(finder, expression));
            }
            Expr::Path(path) => {
                if let (Some(name), 0) = (path.path.get_ident(), self.test) {
                    self.names.push((name.to_string(), bytes(path), self.constant > 0));
                }
                self.apart(|finder| visit::visit_expr(finder, expression));
            }
            _ => self.apart(|finder| visit::visit_expr(finder, expression)),
        }
    }

    /// The arguments of `assert!` and its like are expressions too.
    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        if let Ok(arguments) = called.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
            for argument in &arguments {
                self.apart(|finder| finder.visit_expr(argument));
            }
        }
    }
}

/// Whether it is a chain of `&&` with `let` in it.
fn holds_let(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(binary) => holds_let(&binary.left) || holds_let(&binary.right),
        _ => false,
    }
}

/// Whether what has these attributes is a part of what ships: neither test nor model.
fn ships(attributes: &[Attribute]) -> bool {
    attributes.iter().all(|attribute| match &attribute.meta {
        Meta::Path(path) => !path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("cfg") => {
            list.parse_args().is_ok_and(|condition| holds(&condition))
        }
        _ => true,
    })
}

/// A condition with `test` and `loom` off and everything else on.
fn holds(condition: &Meta) -> bool {
    match condition {
        Meta::Path(path) => !path.is_ident("test") && !path.is_ident("loom"),
        Meta::NameValue(_) => true,
        Meta::List(list) => {
            let inner =
                list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default();
            match list.path.get_ident().map(ToString::to_string).as_deref() {
                Some("not") => !inner.iter().all(holds),
                Some("any") => inner.iter().any(holds),
                _ => inner.iter().all(holds),
            }
        }
    }
}

fn attributes(item: &syn::Item) -> &[Attribute] {
    match item {
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        _ => &[],
    }
}
