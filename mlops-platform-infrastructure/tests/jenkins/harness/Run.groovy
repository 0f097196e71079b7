/** One build: which stages run for these changes on this branch, which steps they take, what follows a failure. */
class Run {
    static class StepFailed extends RuntimeException {
        StepFailed(String message) { super(message) }
    }

    static class Rejected extends RuntimeException {
        Rejected(String message) { super(message) }
    }

    final Object pipeline
    final List<String> changed
    final String branch
    final String previousResult
    final List<String> failing
    final boolean approved
    final Map<String, Object> parameters
    String result = 'SUCCESS'
    final List<Map> steps = []
    final List<Map> inputs = []
    final List<String> ran = []
    final List<String> skipped = []

    Run(Object pipeline, Map request) {
        this.pipeline = pipeline
        changed = request.changed ?: []
        branch = request.branch ?: 'main'
        previousResult = request.previous_result
        failing = request.fail ?: []
        approved = request.approve == null ? true : request.approve
        Set unknown = (request.parameters ?: [:]).keySet() - pipeline.parameters.keySet()
        if (unknown) throw new NotAllowed("no parameters ${unknown}")
        parameters = pipeline.parameters + (request.parameters ?: [:])
    }

    Map report() {
        Context whole = new Context(this, [], pipeline.agent?.label, [:]).with(pipeline.environment)
        sequence(pipeline.stages, whole)
        post(pipeline.post, whole, result)
        return [result: result, steps: steps, inputs: inputs, ran: ran, skipped: skipped]
    }

    /** A command that the request wants to see fail. */
    void take(String command) {
        if (failing.any { command =~ it }) throw new StepFailed(command)
    }

    void goOn(Closure work) {
        try {
            work()
        } catch (StepFailed error) {
            result = 'FAILURE'
        }
    }

    Object evaluate(Closure block) {
        block.delegate = [params: parameters, env: [BRANCH_NAME: branch],
                          currentBuild: [previousBuild: previousResult == null ? null : [result: previousResult]]]
        block.resolveStrategy = Closure.DELEGATE_FIRST
        return block.call()
    }

    private void sequence(List stages, Context around) {
        stages.each { stage ->
            String path = (around.path + stage.name).join(' / ')
            if (result != 'SUCCESS') {
                skipped << path
                return
            }
            this.stage(stage, around, path)
        }
    }

    /** A stage's result is its own; the build's is the worst of all. */
    private void stage(Object stage, Context around, String path) {
        String own = 'SUCCESS'
        Context context = around.inside(stage.name, stage.agent ? stage.agent.label : around.agent).with(stage.environment)
        boolean early = stage.when?.beforeInput
        if (early && !stage.when.holds(this)) {
            skipped << path
            return
        }
        try {
            if (stage.input) context = ask(stage, context, path)
        } catch (Rejected error) {
            result = 'ABORTED'
            skipped << path
            return
        }
        if (stage.when && !early && !stage.when.holds(this)) {
            skipped << path
            return
        }
        ran << path
        try {
            if (stage.steps) {
                context.take(stage.steps)
            } else if (stage.stages) {
                sequence(stage.stages, context)
            } else {
                List<String> results = stage.parallel.collect { branch ->
                    result = 'SUCCESS'
                    this.stage(branch, context, "${path} / ${branch.name}")
                    result
                }
                result = results.find { it != 'SUCCESS' } ?: 'SUCCESS'
            }
            own = result
        } catch (StepFailed error) {
            own = 'FAILURE'
        }
        own = post(stage.post, context, own)
        if (own != 'SUCCESS') result = own
    }

    private Context ask(Object stage, Context context, String path) {
        inputs << [stage: path, message: stage.input.message, submitter: stage.input.submitter, approved: approved]
        if (!approved) throw new Rejected(path)
        String name = stage.input.submitterParameter
        return name ? context.with([(name): 'somebody']) : context
    }

    private String post(Map<String, Closure> blocks, Context context, String own) {
        String before = previousResult ?: 'SUCCESS'
        Map<String, Boolean> holds = [
            always: true, cleanup: true, success: own == 'SUCCESS', failure: own == 'FAILURE', aborted: own == 'ABORTED',
            unsuccessful: own != 'SUCCESS', changed: own != before, fixed: own == 'SUCCESS' && before != 'SUCCESS',
        ]
        Model.POST_ORDER.findAll { blocks[it] && holds[it] }.each { condition ->
            try {
                context.inside("post ${condition}", context.agent).take(blocks[condition])
            } catch (StepFailed error) {
                own = 'FAILURE'
                result = 'FAILURE'
            }
        }
        return own
    }
}
