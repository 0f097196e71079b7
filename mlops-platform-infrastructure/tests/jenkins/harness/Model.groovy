/**
 * The part of the declarative syntax that our pipelines use, as a tree. What is not written down here is an error:
 * a directive with a typing mistake, or one that nobody thought about, must not pass.
 */
class Model {
    static final List<String> POST_ORDER = [
        'always', 'changed', 'fixed', 'aborted', 'failure', 'success', 'unsuccessful', 'cleanup',
    ]

    static Pipeline read(String path) {
        Pipeline pipeline = null
        Binding binding = new Binding()
        binding.setVariable('pipeline', { Closure block -> pipeline = fill(new Pipeline(), block) })
        new GroovyShell(Model.classLoader, binding).evaluate(new File(path))
        if (!pipeline) throw new NotAllowed('no pipeline')
        pipeline.stages.each { it.check(false) }
        return pipeline
    }

    /** Runs a block of the pipeline against the object that knows which words are allowed in it. */
    static <T> T fill(T spec, Closure block) {
        block.delegate = spec
        block.resolveStrategy = Closure.DELEGATE_FIRST
        try {
            block.call()
        } catch (MissingMethodException error) {
            throw new NotAllowed("${spec.class.simpleName}: '${error.method}' is not known here with ${error.arguments.collect { it?.class?.simpleName }}")
        } catch (MissingPropertyException error) {
            throw new NotAllowed("${spec.class.simpleName}: '${error.property}' is not known here")
        }
        return spec
    }

    static class Agent {
        String label
        void label(String value) { label = value }
    }

    /** What `pipeline` and `stage` have in common. */
    static class Section {
        final String none = 'none'
        Agent agent
        Map<String, Object> environment = [:]
        Map<String, Closure> post = [:]
        Map<String, Object> options = [:]
        List<Stage> stages = []

        void agent(String word) {
            if (word != 'none') throw new NotAllowed("agent ${word}: work runs on agents by label, or on none")
            agent = new Agent(label: null)
        }

        void agent(Closure block) {
            agent = fill(new Agent(), block)
            if (!agent.label) throw new NotAllowed('an agent needs a label')
        }

        void environment(Closure block) { environment = fill(new Environment(), block).values }
        void post(Closure block) { post = fill(new Post(), block).blocks }
        void options(Closure block) { options = fill(new Options(), block).values }
        void stages(Closure block) { stages = fill(new Stages(), block).stages }
    }

    static class Pipeline extends Section {
        Map<String, Object> parameters = [:]
        void parameters(Closure block) { parameters = fill(new Parameters(), block).values }
    }

    static class Stage extends Section {
        String name
        When when
        Input input
        Closure steps
        List<Stage> parallel = []
        boolean failFast

        void when(Closure block) { when = fill(new When(), block) }
        void input(Closure block) { input = fill(new Input(), block) }
        void steps(Closure block) { steps = block }
        void parallel(Closure block) { parallel = fill(new Stages(), block).stages }
        void failFast(boolean value) { failFast = value }

        void check(boolean insideParallel) {
            int kinds = (steps ? 1 : 0) + (stages ? 1 : 0) + (parallel ? 1 : 0)
            if (kinds != 1) throw new NotAllowed("stage '${name}': exactly one of steps, stages and parallel")
            if (parallel && (agent || input || insideParallel)) {
                throw new NotAllowed("stage '${name}': a stage of parallel ones has no agent and no input, and is not nested")
            }
            (stages + parallel).each { it.check(insideParallel || parallel as boolean) }
        }
    }

    static class Stages {
        List<Stage> stages = []
        void stage(String name, Closure block) {
            if (stages.any { it.name == name }) throw new NotAllowed("two stages are named '${name}'")
            stages << fill(new Stage(name: name), block)
        }
    }

    static class Environment {
        Map<String, Object> values = [:]
        void setProperty(String name, Object value) { values[name] = value }
        Map credentials(String id) { [credential: id] }
    }

    static class Post {
        Map<String, Closure> blocks = [:]
        Object invokeMethod(String name, Object arguments) {
            if (!(name in POST_ORDER) || arguments.size() != 1) throw new NotAllowed("post: '${name}' is not known here")
            blocks[name] = arguments[0]
        }
    }

    static class Options {
        Map<String, Object> values = [:]
        void buildDiscarder(Map strategy) { values.buildDiscarder = strategy }
        Map logRotator(Map limits) { limits }
        void disableConcurrentBuilds() { values.disableConcurrentBuilds = true }
        void skipStagesAfterUnstable() { values.skipStagesAfterUnstable = true }
        void timestamps() { values.timestamps = true }
        void timeout(Map limit) {
            if (!(limit.time instanceof Integer) || !(limit.unit in ['MINUTES', 'HOURS', 'DAYS'])) throw new NotAllowed("timeout ${limit}")
            values.timeout = limit
        }
    }

    static class Parameters {
        Map<String, Object> values = [:]
        void booleanParam(Map given) {
            if (given.keySet() != ['name', 'defaultValue', 'description'] as Set) throw new NotAllowed("booleanParam ${given.keySet()}")
            values[given.name] = given.defaultValue
        }
    }

    static class Input {
        String message, ok, submitter, submitterParameter
        void message(String value) { message = value }
        void ok(String value) { ok = value }
        void submitter(String value) { submitter = value }
        void submitterParameter(String value) { submitterParameter = value }
    }

    /** Conditions; each is a closure over the run, all must hold. */
    static class When {
        boolean beforeAgent, beforeInput
        List<Closure<Boolean>> conditions = []

        void beforeAgent(boolean value) { beforeAgent = value }
        void beforeInput(boolean value) { beforeInput = value }
        void branch(String name) { conditions << { run -> PathPattern.matches(name, run.branch) } }
        void changeset(String glob) { conditions << { run -> run.changed.any { PathPattern.matches(glob, it) } } }
        void expression(Closure block) { conditions << { run -> run.evaluate(block) as boolean } }
        void not(Closure block) { When inner = fill(new When(), block); conditions << { run -> !inner.holds(run) } }
        void anyOf(Closure block) { When inner = fill(new When(), block); conditions << { run -> inner.conditions.any { it(run) } } }
        void allOf(Closure block) { When inner = fill(new When(), block); conditions << { run -> inner.holds(run) } }

        boolean holds(Object run) { conditions.every { it(run) } }
    }
}
